"""Options and arguments of the command `dinocache`, with their help and their completion by Tab."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer

from dinocache.errors import RequestError

RESIZES = ("squash", "pad", "crop")
ARITHMETICS = ("float32", "uint8")
ROPES = ("auto", "float32")
PRECISIONS = ("fp32", "bf16")
CODECS = ("none", "zstd", "blosc")
CLUSTERS = ("local:", "gpu", "slurm:", "tcp://")


def starting(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Complete one of a few words."""
    return lambda incomplete: [word for word in choices if word.startswith(incomplete)]


def choice(option: str, value: str | None, choices: Collection[str]) -> str | None:
    """Let one of a few words through, or none; raises `RequestError`."""
    if value is not None and value not in choices:
        raise RequestError(f"{option} {value!r}: choose from {', '.join(choices)}")
    return value


def encoder_names(start: str) -> list[str]:
    """Complete what stands after --model."""
    from dinocache.encoders import ENCODERS

    return [spec.name for spec in ENCODERS if spec.name.startswith(start)]


def reader_names(start: str) -> list[str]:
    """Complete the name of a reader."""
    from dinocache.readers import READERS

    return [name for name in READERS if name.startswith(start)]


def dataset_names(start: str) -> list[str]:
    """Complete the name of a shipped dataset."""
    from dinocache.manifest import shipped_manifests

    return [name for name in shipped_manifests() if name.startswith(start)]


DatasetArgument = Annotated[
    str,
    typer.Argument(
        autocompletion=dataset_names,
        help="Name of a shipped dataset (see `dinocache datasets`), path of a manifest (.yaml), "
        "or of a table (.csv, .tsv, .parquet) with a column `path` and, if wanted, item_id, "
        "group, split, mask and any target columns.",
    ),
]
StoreArgument = Annotated[
    str,
    typer.Argument(help="A store: its folder, or a URL (s3://, gs://, az://, https://, ssh://)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of whatever fails.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder that paths are relative to. Default: data/<name>; a table's own folder."
    ),
]
RootOption = Annotated[
    str,
    typer.Option(
        "--store",
        help="Root of the stores, a folder or a URL; one lies at ROOT/<dataset>/<model>/<res>.",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(help="The dataset's name. Default: the manifest's, or the table's stem."),
]
ModelOption = Annotated[
    str,
    typer.Option(
        autocompletion=encoder_names,
        help="Encoder: a name that `dinocache encoders` lists, timm:NAME, or open_clip:NAME/TAG.",
    ),
]
ResolutionOption = Annotated[
    str | None,
    typer.Option(
        help="What the encoder sees, px: 512, or 512x640 as height x width. Default: the dataset's "
        "(256 for a table), or the encoder's own size where it cannot take that."
    ),
]
VariantOption = Annotated[
    str,
    typer.Option(
        help="Gives a second recipe of the same dataset, model and resolution its folder."
    ),
]
FeaturesOption = Annotated[
    str | None,
    typer.Option(
        help="Kinds to keep, with commas: cls, mean, embed (a vector a row: the class token, the "
        "mean over patches, the publisher's own embedding), dense (a map of patch vectors), image, "
        "mask (the item's own grid). Default: what the store has, or the dataset's with all "
        "vectors of the encoder."
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        help="Depths of dense: last, last4 (the last four blocks or stages), or their numbers from "
        "0, as 5,11. A map before the last layer is a kind of its own, dense.L05."
    ),
]
ViewsOption = Annotated[
    str | None,
    typer.Option(
        help="Of maps, also those of the image turned: identity,hflip,vflip,rot180 (a square one "
        "also rot90, rot270, transpose, antitranspose; all: all eight), to learn from. Each is a "
        "pass of its own and a kind, dense.hflip."
    ),
]
RowsOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=starting(("all", "foreground", "labelled")),
        help="Slices of a volume that are kept: all (default), or from the first to the last that "
        "has foreground, or a label of its mask. The same as -o rows=...",
    ),
]
ResizeOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=starting(RESIZES),
        help="How an image comes to the resolution: squash (default; the aspect ratio goes), pad "
        "(with 0), or crop (the centre, as the encoder's publisher does).",
    ),
]
ArithmeticOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=starting(ARITHMETICS),
        help="Resize in float32 (default), or in uint8 as the encoders' own libraries do; uint8 is "
        "for 8-bit images.",
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        help="Values that become 0 and 1: full-range (of the integer type), file (DICOM's own), "
        "min-max, LOW:HIGH, W400L40 (width, level), hu, lung, soft-tissue, bone, brain, suv, "
        "percentile:1:99, z-score:3; the last two and min-max with /nonzero to leave zeros out. "
        "One, or one a channel with commas; three make three channels of a grey one. Default: the "
        "dataset's; percentile for volumes; min-max for anatomix; else full-range."
    ),
]
ReaderOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=reader_names,
        help="image, volume, slide, video or stack (`dinocache readers`). Default: by file names.",
    ),
]
OptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        help="NAME=VALUE of the reader, as spacing=1,1,3; may be repeated. `dinocache readers "
        "NAME` lists them.",
    ),
]
MppOption = Annotated[
    float | None,
    typer.Option(help="um/px of a slide's full resolution, where its file does not say."),
]
ChannelsOption = Annotated[
    str | None,
    typer.Option(
        help="What becomes of several channels: stacked (the encoder's input together) or passes "
        "(through the encoder one by one: kinds cls.ct, cls.pet); passes:NAME,NAME names those of "
        "one file. Default: passes where a table has columns path.NAME."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads that decode, each with a process for DICOM series. Default: for a GPU as "
        "many as there are cores, up to 16; else 4.",
    ),
]
UnitRowsOption = Annotated[
    int | None,
    typer.Option(
        help="Rows that are committed together: a power of two, 16 to 4096. Fixed for a store."
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(help="Rows a pass of the encoder. Fixed for a store: it changes last bits."),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="hub, PATH of a checkpoint (.pth, .safetensors), random[:SEED] (tests and "
        "demonstrations only), or several with commas: the first that can be had. Default: "
        "as the store has it, else hub."
    ),
]
RopeOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=starting(ROPES),
        help="RoPE periods: auto (the checkpoint's, else rounded to bfloat16 as released) "
        "or float32.",
    ),
]
AnyDeviceOption = Annotated[
    bool, typer.Option(help="Go on with a store that another kind of device began.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=starting(PRECISIONS),
        help="fp32 or bf16. Default: bf16 on cuda, fp32 elsewhere.",
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=starting(("float16", "float32")),
        help="How features are kept: float16 (default) or float32; float32:dense or "
        "float32:vectors for one sort. Fixed for a store, like the next two.",
    ),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=starting(("int8", "int8:dense", "int8:vectors", "none")),
        help="int8: half the bytes of float16, with a scale a channel that is fitted on a sample; "
        "int8:dense for maps alone. `dinocache info` says what it cost.",
    ),
]
PcaOption = Annotated[
    str | None,
    typer.Option(
        help="Keep so many principal components, fitted on a sample, instead of all channels: 64, "
        "or 64:dense for maps alone. A store has its own basis: --calibration gives it that "
        "of another, which it can be compared with then."
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        metavar="STORE",
        help="Take the bases and scales of another store, so that components can be compared: for "
        "training on the one and testing on the other. Default: fit them on a sample of the items.",
    ),
]
CodecOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=starting(CODECS),
        help="Compress the features: none (default; float16 hardly shrinks), zstd or blosc, worth "
        "it for int8 on slow links. Fixed for a store.",
    ),
]
CompiledOption = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Let torch compile the encoder. Default: on cuda. Fixed for a store.",
    ),
]
AppendOption = Annotated[
    bool, typer.Option(help="Add this table's new items to the store of another table.")
]
AllowMissingOption = Annotated[
    bool,
    typer.Option(
        help="Go on where files of the download are missing, or counts are not the official ones."
    ),
]
RetryFailedOption = Annotated[bool, typer.Option(help="Try items again that failed before.")]
RetryChangedOption = Annotated[
    bool,
    typer.Option(help="Extract items anew whose files have changed since they were extracted."),
]
HashSourcesOption = Annotated[
    bool,
    typer.Option(
        help="Keep the sha256 of each new item's files, beside size and time: a file that was "
        "only touched does not count as changed then. Reads every file once more."
    ),
]
MaxFailuresOption = Annotated[
    int | None,
    typer.Option(min=0, help="Stop once more items than this have failed. Default: go on."),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        help="I/N: do every N-th unit only, from the I-th, as one of a job array. Parts may "
        "overlap, repeat or die; whichever is last completes the store."
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=starting(CLUSTERS),
        help="Who does the units: local:N (processes here), gpu (one a GPU here), slurm:N "
        "(jobs), or tcp://HOST:PORT of a running Dask scheduler. Default: this machine's "
        "device, without a cluster.",
    ),
]
ClusterSettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE of the cluster, as queue=gpu, walltime=04:00:00, memory=32GB "
        "(dask-jobqueue's SLURMCluster); may be repeated."
    ),
]
AdaptOption = Annotated[
    str | None, typer.Option(help="MIN:MAX workers of a cluster, as there is work.")
]
IsolateOption = Annotated[
    bool,
    typer.Option(
        help="Extract in a child process, so that a file that crashes its decoder costs that "
        "item and not the run."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
]
TimingOption = Annotated[
    bool,
    typer.Option(
        help="Read a few items and make a few passes, to say how many hours it would take."
    ),
]
