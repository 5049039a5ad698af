"""What a person asks of `probe register`, and the settings of its methods."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from dinocache.errors import RequestError
from dinocache.layout import is_row_kind, is_vector_kind
from dinocache.manifest import Pairs
from dinocache.places import Where
from probes.heads import Setting, parse_fields
from probes.metrics.glossary import check_mask_metrics
from probes.registration.convexadam import ConvexAdamSettings
from probes.registration.voxelmorph_settings import VoxelMorphSettings

__all__ = [
    "COMPUTED",
    "METHODS",
    "USUAL_METRICS",
    "ConvexAdamMethod",
    "RegisterRequest",
    "UnregisteredMethod",
    "VoxelMorphMethod",
    "make_method",
    "parse_method_settings",
]

COMPUTED = ("mind", "image")
"""Features that are made of images, and stand in no store."""
USUAL_METRICS = ("dice", "hd95", "asd", "folding", "log_jacobian_sd")
_PER_AXIS = "a number, or one for each axis (z, y, x), as 2x4x4"


@dataclass(frozen=True, kw_only=True)
class _FeatureSettings:
    """How features of a pair are made.

    Attributes:
        components: Principal components of the maps, one basis for both images.
        feature_scale: Of components beside MIND, after their deviation is brought to 1.
        inside: Of which patches components are taken: all, or those where something is imaged
            (ultrasound shows a cone in a black frame).
        mind_radius: Of MIND's patches, voxels.
        mind_dilation: Distance of MIND's neighbours, voxels.
    """

    components: int = 24
    feature_scale: float = 0.1
    inside: Literal["all", "foreground"] = "all"
    mind_radius: int = 1
    mind_dilation: int = 2

    def __post_init__(self) -> None:
        if self.components < 1 or self.mind_radius < 0 or self.mind_dilation < 1:
            raise ValueError("components and mind_dilation are at least 1, mind_radius at least 0")
        if not self.feature_scale > 0:
            raise ValueError(f"feature_scale must be above 0, got {self.feature_scale}")


@dataclass(frozen=True, kw_only=True)
class UnregisteredMethod:
    """The moving image as it is."""


@dataclass(frozen=True, kw_only=True)
class ConvexAdamMethod(_FeatureSettings):
    """Dense correlation, coupled convex optimisation, Adam; nothing is trained.

    Attributes:
        lambda_weight: Of the smoothness.
        grid_sp: Spacing of the control grid, voxels.
        disp_hw: How many steps of that grid are searched, each way.
        grid_sp_adam: Spacing of the grid that Adam works on, voxels.
        niter: Steps of Adam; 0 leaves it out.
        learning_rate: Of Adam.
        smooth: Side of a last box filter, voxels; 0 leaves it out.
        inverse_consistency: Whether the way there and back are made to agree.
        as_published: Whether displacements are measured as the public package measures them, a few
            percent off; for comparisons with its results.
    """

    lambda_weight: float = 1.25
    grid_sp: int | str = 4
    disp_hw: int | str = 4
    grid_sp_adam: int | str = 2
    niter: int = 80
    learning_rate: float = 1.0
    smooth: int = 0
    inverse_consistency: bool = True
    as_published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings(3)

    def settings(self, axes: int) -> ConvexAdamSettings:
        """Give what ConvexAdam takes; of three values for (z, y, x) pictures take the last two."""
        values = {one.name: getattr(self, one.name) for one in fields(ConvexAdamSettings)}
        for name in ("grid_sp", "disp_hw", "grid_sp_adam"):
            step = _steps(name, values[name])
            values[name] = step if isinstance(step, int) else step[-axes:]
        return ConvexAdamSettings(**values)


@dataclass(frozen=True, kw_only=True)
class VoxelMorphMethod(_FeatureSettings):
    """A U-Net that is trained on other pairs.

    Attributes:
        epochs: Over the training pairs.
        lr: Of Adam.
        image_loss: `ncc` in windows, or `mse`.
        smoothness: Weight of the displacement's gradient; none takes 1 with ncc, 0.01 with mse.
        feature_loss: Weight of the squared difference of features, where they are given.
        int_steps: Of scaling and squaring; 0 lets the displacement fold.
        seed: Of weights and order.
    """

    epochs: int = 100
    lr: float = 1e-4
    image_loss: Literal["ncc", "mse"] = "ncc"
    smoothness: float | None = None
    feature_loss: float = 1.0
    int_steps: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings()

    def settings(self) -> VoxelMorphSettings:
        """Give what the network takes."""
        own = {one.name for one in fields(VoxelMorphSettings)}
        return VoxelMorphSettings(**{n: v for n, v in vars(self).items() if n in own})


Method = UnregisteredMethod | ConvexAdamMethod | VoxelMorphMethod
METHODS: Mapping[str, type[UnregisteredMethod | ConvexAdamMethod | VoxelMorphMethod]] = (
    MappingProxyType(
        {
            "convexadam": ConvexAdamMethod,
            "voxelmorph": VoxelMorphMethod,
            "unregistered": UnregisteredMethod,
        }
    )
)


def _steps(name: str, value: int | str) -> int | tuple[int, ...]:
    """Read 4, or 2x4x4.

    Raises:
        ValueError: If it is neither.
    """
    try:
        found = tuple(int(part) for part in str(value).split("x"))
    except ValueError:
        found = ()
    if len(found) not in (1, 2, 3) or min(found) < 1:
        raise ValueError(f"setting {name}: {value!r} is not {_PER_AXIS}")
    return found[0] if len(found) == 1 else found


def make_method(name: str, **settings: Setting) -> Method:
    """Give a method its settings.

    Raises:
        ValueError: If there is no such method or setting, or a value is none.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    typed: dict[str, Any] = parse_fields(METHODS[name], f"method {name}", settings)
    return METHODS[name](**typed)


def parse_method_settings(name: str, texts: Iterable[str]) -> dict[str, tuple[Setting, ...]]:
    """Read KEY=VALUE, or KEY=VALUE,VALUE, of which validation pairs choose.

    Raises:
        ValueError: If a text is none, or there is no such setting.
    """
    found: dict[str, tuple[Setting, ...]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        parts = [part.strip() for part in values.split(",") if part.strip()]
        if not (key and equals and parts):
            raise ValueError(f"a setting is written key=value, or key=value,value, got {text!r}")
        if key in found:
            raise ValueError(f"setting {key} is given twice; give its values with commas")
        found[key] = tuple(asdict(make_method(name, **{key: part}))[key] for part in parts)
    return found


@dataclass(frozen=True, kw_only=True)
class RegisterRequest:
    """What a person asks.

    Attributes:
        store: A path or a URL.
        pairs: Which items belong together.
        labels: Value of the mask -> what it is.
        task: DATASET/TASK that this is, if it is one.
        method: Of `METHODS`.
        features: Kinds of maps, all of one grid, and `mind` and `image`, which are made of images.
        settings: Of the method.
        grid: Setting -> values that validation pairs choose from.
        split: Column with sides, or numbers of folds.
        folds: Drawn here, instead.
        validation: Share of a fold's training groups that chooses.
        everything: Whether all pairs are tested; nothing is chosen or trained then.
        metrics: Names.
        replicates: Of the bootstrap.
    """

    store: Where
    pairs: Pairs
    labels: Mapping[int, str]
    task: str | None = None
    method: str = "convexadam"
    features: tuple[str, ...] = ("dense",)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    grid: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    split: str | None = None
    folds: int | None = None
    validation: float | None = None
    everything: bool = False
    metrics: tuple[str, ...] = USUAL_METRICS
    replicates: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot be, whatever the store holds.

        Raises:
            RequestError: Which option, and what it takes.
        """
        if self.method == "unregistered":
            object.__setattr__(self, "features", ())
        self._check_features()
        if not self.labels or min(self.labels) < 1:
            raise RequestError("--labels: name at least one value above 0, as 1=ventricle")
        if sum([self.split is not None, self.folds is not None, self.everything]) > 1:
            raise RequestError("--split, --folds and --all are three protocols; give one of them")
        if self.validation is not None and not 0 < self.validation < 1:
            raise RequestError(f"--validation {self.validation}: a share between 0 and 1")
        if self.replicates < 1:
            raise RequestError("--replicates must be at least 1")
        if self.everything and (self.grid or self.method == "voxelmorph"):
            what = "choose among settings" if self.grid else "train the network"
            raise RequestError(f"--all tests every pair, so none is left to {what}")
        if twice := set(self.grid) & set(self.settings):
            raise RequestError(f"setting {min(twice)} is given as one value and as several")
        if self.grid and self.method != "convexadam":
            raise RequestError(f"several values of a setting are for convexadam, not {self.method}")
        try:
            check_mask_metrics(self.metrics, "registration")
            make_method(self.method, **self.settings)
        except ValueError as exc:
            raise RequestError(str(exc)) from exc

    def _check_features(self) -> None:
        if self.method not in METHODS:
            raise RequestError(f"--method {self.method!r}: choose from {', '.join(METHODS)}")
        if self.method != "unregistered" and not self.features:
            raise RequestError("--features: name maps of the store (dense), mind or image")
        for kind in self.features:
            if kind not in COMPUTED and (not is_row_kind(kind) or is_vector_kind(kind)):
                raise RequestError(
                    f"--features {kind!r}: name maps, as dense, dense.L05, or mind, or image"
                )
        if len(set(self.features)) < len(self.features):
            raise RequestError(f"--features {','.join(self.features)}: name each once")
        if self.method == "voxelmorph" and "mind" in self.features:
            raise RequestError("voxelmorph takes images and maps, not mind")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of maps that are read from the store."""
        return tuple(kind for kind in self.features if kind not in COMPUTED)

    def digest(self, **beside: Any) -> str:  # noqa: ANN401 - JSON
        """Sum up all that decides the figures: sha256, hex; the same wherever the store lies."""
        asked = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "store"}
        asked["pairs"] = self.pairs.model_dump()
        text = json.dumps({"request": asked, **beside}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()
