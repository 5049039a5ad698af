"""The table of encoders, and what is told from it alone."""

import dataclasses
import re

import pytest
import timm
import torch

from dinocache.encoders import ENCODERS, encoder_spec
from dinocache.errors import RequestError
from dinocache.networks import build_network, wanted
from dinocache.spec import EncoderSpec, check_resolution, dense_kinds, extracted_kinds, takes

TINY = encoder_spec("tiny")
SMALL = encoder_spec("dinov3-s")
RESNET = encoder_spec("resnet50")
ANATOMIX = encoder_spec("anatomix")
CONCH = encoder_spec("conch")
FIXED = dataclasses.replace(SMALL, name="fixed", fixed_px=224)

every_row = pytest.mark.parametrize("spec", ENCODERS, ids=lambda spec: spec.name)
IN_TIMM = [spec for spec in ENCODERS if any(h.repo.startswith("timm/") for h in spec.hub)]


class TestTable:
    def test_names_are_unique(self) -> None:
        assert len({spec.name for spec in ENCODERS}) == len(ENCODERS)

    @every_row
    def test_row_fits_together(self, spec: EncoderSpec) -> None:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", spec.name)
        assert takes(spec, (spec.native_px, spec.native_px))
        assert spec.step_px % spec.patch_px == 0
        assert (spec.embed_dim is not None) == ("embed" in spec.vectors)
        assert set(spec.vectors) <= {"cls", "mean", "embed"}
        assert spec.kinds == (*spec.vectors, "dense")
        assert not spec.obtain.endswith(".")
        assert len(spec.files) == len(set(spec.files))
        assert all(0 < std <= 1 for std in spec.std)
        if spec.pyramid:
            assert len(spec.pyramid) == spec.depth
            assert spec.pyramid[-1] == (spec.patch_px, spec.dim)
        for layer in range(spec.depth):
            assert spec.step_px % spec.layer_shape(layer)[0] == 0
        assert spec.layer_shape(spec.depth - 1) == (spec.patch_px, spec.dim)

    @pytest.mark.parametrize("spec", IN_TIMM, ids=lambda spec: spec.name)
    def test_table_agrees_with_timm(self, spec: EncoderSpec) -> None:
        repo = next(h.repo for h in spec.hub if h.repo.startswith("timm/"))
        config = timm.get_pretrained_cfg(repo.removeprefix("timm/"))
        assert config.hf_hub_id == repo
        assert (config.mean, config.std, config.license) == (spec.mean, spec.std, spec.licence)
        assert config.interpolation == spec.filter
        if spec.name != "resnet50-trunc":  # of which another publisher says how it is used
            assert config.crop_pct == spec.crop_pct
        assert config.input_size[1:] == (spec.native_px, spec.native_px)

    @pytest.mark.parametrize(
        "spec", [s for s in ENCODERS if s.network == "tokens"], ids=lambda spec: spec.name
    )
    def test_tokens_are_those_of_the_network(self, spec: EncoderSpec) -> None:
        with torch.device("meta"):
            trunk = build_network(spec).trunk
        assert (trunk.embed_dim, len(trunk.blocks)) == (spec.dim, spec.depth)
        assert trunk.num_prefix_tokens == spec.prefix_tokens
        assert trunk.patch_embed.patch_size == (spec.patch_px, spec.patch_px)
        rope = getattr(trunk, "rope", None)
        assert getattr(rope, "temperature", None) == spec.rope_base
        if spec.rope_base is not None:
            head_dim, rest = divmod(spec.dim, trunk.blocks[0].attn.num_heads)
            assert (rest, head_dim % 4) == (0, 0)

    @pytest.mark.parametrize(
        "spec", [s for s in ENCODERS if s.network == "maps"], ids=lambda spec: spec.name
    )
    def test_maps_are_those_of_the_network(self, spec: EncoderSpec) -> None:
        height, width = 2 * spec.step_px, 3 * spec.step_px
        kinds = [*spec.kinds, *(f"dense.L{n:02d}" for n in range(spec.depth - 1))]
        with torch.device("meta"):
            features = build_network(spec)(torch.empty(5, 3, height, width), wanted(kinds))
        for kind in spec.vectors:
            assert features[kind].shape == (5, spec.dim)
        for layer, (patch, dim) in enumerate(spec.pyramid):
            kind = "dense" if layer == spec.depth - 1 else f"dense.L{layer:02d}"
            assert features[kind].shape == (5, height // patch, width // patch, dim), kind


class TestNames:
    @every_row
    def test_every_row_is_found(self, spec: EncoderSpec) -> None:
        assert encoder_spec(spec.name) is spec
        assert encoder_spec(spec.name.upper()) is spec

    @pytest.mark.parametrize(
        ("name", "found"), [("dinov3-s+", "dinov3-splus"), ("DINOv3-H+", "dinov3-hplus")]
    )
    def test_a_plus_may_be_a_sign(self, name: str, found: str) -> None:
        assert encoder_spec(name).name == found

    def test_unknown_name_lists_the_known(self) -> None:
        known = ", ".join(spec.name for spec in ENCODERS)
        message = (
            rf"^there is no encoder 'x'; known are {known}.*`dinocache encoders` lists them; "
            r"timm:NAME and open_clip:NAME/TAG take any model of those libraries$"
        )
        with pytest.raises(RequestError, match=message):
            encoder_spec("x")

    @pytest.mark.parametrize(
        ("name", "close"),
        [
            ("dinov3_s", "dinov3-s"),
            ("mocov3", "mocov3-b"),
            ("biomedclp", "biomedclip"),
            ("UNI2", "uni"),
        ],
    )
    def test_a_name_that_is_nearly_right(self, name: str, close: str) -> None:
        message = rf"no encoder '{name}'; did you mean {close}(\?| or .*\?) `dinocache encoders` li"
        with pytest.raises(RequestError, match=message):
            encoder_spec(name)


class TestResolution:
    @pytest.mark.parametrize("resolution", [(16, 16), (224, 224), (1024, 1280)])
    def test_whole_patches(self, resolution: tuple[int, int]) -> None:
        assert takes(TINY, resolution)
        check_resolution(TINY, resolution)

    @pytest.mark.parametrize(
        ("resolution", "nearest"),
        [
            ((250, 250), "240x240 or 256x256"),
            ((250, 64), "240x64 or 256x64"),
            ((7, 100), "16x96 or 16x112"),
            ((0, 64), "16x64"),
            ((-16, 64), "16x64"),
        ],
    )
    def test_broken_patches_name_the_nearest_sizes(
        self, resolution: tuple[int, int], nearest: str
    ) -> None:
        height, width = resolution
        message = (
            rf"^tiny cannot take {height}x{width} px \(height x width\): both sides must be "
            rf"positive multiples of 16 px\. Nearest that work: {nearest}; its own size is 64$"
        )
        assert not takes(TINY, resolution)
        with pytest.raises(RequestError, match=message):
            check_resolution(TINY, resolution)

    @pytest.mark.parametrize(
        ("name", "taken", "refused"),
        [
            ("dinov2-s", (518, 14), (512, 14)),
            ("resnet50", (224, 32), (224, 16)),
            ("resnet50-trunc", (224, 16), (224, 8)),
            ("dinov3-convnext-tiny", (96, 64), (96, 48)),
            ("anatomix", (17, 1), (17, 0)),
        ],
    )
    def test_each_encoder_has_its_own_step(
        self, name: str, taken: tuple[int, int], refused: tuple[int, int]
    ) -> None:
        spec = encoder_spec(name)
        assert takes(spec, taken)
        assert takes(spec, taken[::-1])
        assert not takes(spec, refused)
        assert not takes(spec, refused[::-1])

    def test_one_size_only(self) -> None:
        check_resolution(FIXED, (224, 224))
        for resolution in ((224, 240), (240, 224), (448, 448), (0, 0)):
            height, width = resolution
            assert not takes(FIXED, resolution)
            with pytest.raises(
                RequestError,
                match=rf"^fixed cannot take {height}x{width} px \(height x width\): "
                r"it takes 224x224 only$",
            ):
                check_resolution(FIXED, resolution)


class TestDenseKinds:
    @pytest.mark.parametrize(
        ("spec", "layers", "expected"),
        [
            (SMALL, "last", ("dense",)),
            (SMALL, "last1", ("dense",)),
            (SMALL, "last4", ("dense.L08", "dense.L09", "dense.L10", "dense")),
            (SMALL, "5,11", ("dense.L05", "dense")),
            (SMALL, " 11,5,5 ", ("dense.L05", "dense")),
            (SMALL, "05", ("dense.L05",)),
            (SMALL, "0", ("dense.L00",)),
            (TINY, "0,1", ("dense.L00", "dense")),
            (TINY, "last2", ("dense.L00", "dense")),
            (RESNET, "last2", ("dense.L03", "dense")),
            (encoder_spec("dinov2-g"), "39", ("dense",)),
            (ANATOMIX, "last", ("dense",)),
        ],
    )
    def test_names(self, spec: EncoderSpec, layers: str, expected: tuple[str, ...]) -> None:
        assert dense_kinds(spec, layers) == expected

    @pytest.mark.parametrize("layers", ["", "first", "last-4", "1;2", "1,", "-1", "100", "1 2"])
    def test_what_cannot_be_understood(self, layers: str) -> None:
        message = (
            rf"^--layers {re.escape(repr(layers))}: give last, last4 \(the last four\), or numbers "
            r"of blocks from 0 with commas, as 5,11$"
        )
        with pytest.raises(RequestError, match=message):
            dense_kinds(SMALL, layers)

    @pytest.mark.parametrize(
        ("spec", "layers", "has"),
        [
            (SMALL, "12", "dinov3-s has 12 blocks, numbered 0 to 11"),
            (SMALL, "0,12", "dinov3-s has 12 blocks, numbered 0 to 11"),
            (SMALL, "last13", "dinov3-s has 12 blocks, numbered 0 to 11"),
            (SMALL, "last0", "dinov3-s has 12 blocks, numbered 0 to 11"),
            (RESNET, "5", "resnet50 has 5 stages, numbered 0 to 4"),
            (ANATOMIX, "last2", "anatomix has 1 blocks, numbered 0 to 0"),
        ],
    )
    def test_layers_that_are_not_there(self, spec: EncoderSpec, layers: str, has: str) -> None:
        with pytest.raises(RequestError, match=rf"^--layers '{layers}': {has}$"):
            dense_kinds(spec, layers)


class TestExtractedKinds:
    VECTORS = ("cls", "mean")  # what a dataset asks for where it says nothing

    @pytest.mark.parametrize(
        ("spec", "asked", "defaults", "layers", "expected"),
        [
            pytest.param(SMALL, None, VECTORS, None, {"cls", "mean"}, id="defaults"),
            pytest.param(RESNET, None, VECTORS, None, {"mean"}, id="without-cls"),
            pytest.param(CONCH, None, VECTORS, None, {"embed", "cls", "mean"}, id="all-vectors"),
            pytest.param(CONCH, None, ("mean", "dense"), None, {"embed", "cls", "mean", "dense"}),
            pytest.param(ANATOMIX, None, VECTORS, None, {"dense"}, id="no-vector"),
            pytest.param(ANATOMIX, None, ("cls", "image"), None, {"dense", "image"}),
            pytest.param(SMALL, None, ("dense", "image"), None, {"dense", "image"}),
            pytest.param(SMALL, ("mean",), VECTORS, None, {"mean"}, id="asked"),
            pytest.param(CONCH, ("cls", "mask"), VECTORS, None, {"cls", "mask"}, id="only-asked"),
            pytest.param(SMALL, None, VECTORS, "last", {"cls", "mean", "dense"}, id="layers"),
            pytest.param(
                TINY, ("cls", "dense"), VECTORS, "0", {"cls", "dense.L00"}, id="layers-replace"
            ),
            pytest.param(
                SMALL,
                ("dense.L03", "image"),
                VECTORS,
                "last2",
                {"dense.L03", "dense.L10", "dense", "image"},
                id="layers-beside-layers",
            ),
            pytest.param(SMALL, ("dense.L05",), VECTORS, None, {"dense.L05"}, id="one-layer"),
            pytest.param(SMALL, ("dense.L11",), VECTORS, None, {"dense"}, id="last-has-one-name"),
            pytest.param(TINY, ("dense.L01", "dense"), VECTORS, None, {"dense"}, id="once"),
        ],
    )
    def test_settled(
        self,
        spec: EncoderSpec,
        asked: tuple[str, ...] | None,
        defaults: tuple[str, ...],
        layers: str | None,
        expected: set[str],
    ) -> None:
        found = extracted_kinds(spec, asked, defaults, layers)
        assert set(found) == expected
        assert len(found) == len(expected)

    @pytest.mark.parametrize(
        ("spec", "asked", "layers", "message"),
        [
            (RESNET, ("cls",), None, r"^resnet50 has no 'cls'; it has mean, dense$"),
            (SMALL, ("mean", "embed"), None, r"^dinov3-s has no 'embed'; it has cls, mean, dense$"),
            (ANATOMIX, ("mean",), None, r"^anatomix has no 'mean'; it has dense$"),
            (SMALL, ("dense.L12",), None, r"dinov3-s has 12 blocks, numbered 0 to 11$"),
            (SMALL, ("cls",), "12", r"^--layers '12': dinov3-s has 12 blocks"),
            (SMALL, None, "deep", r"^--layers 'deep': give last, last4"),
        ],
    )
    def test_refused(
        self, spec: EncoderSpec, asked: tuple[str, ...] | None, layers: str | None, message: str
    ) -> None:
        with pytest.raises(RequestError, match=message):
            extracted_kinds(spec, asked, self.VECTORS, layers)
