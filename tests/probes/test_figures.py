"""Pictures of patch features, and of what heads of maps found."""

import colorsys
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.image import imread

from probes import figures
from probes.figures import (
    _patch_edges,
    affinity_picture,
    component_picture,
    id_colours,
)


def read_png(content: bytes) -> tuple[int, int]:
    """Give (height, width) from a PNG's header."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")


def pixels(content: bytes) -> npt.NDArray[np.uint8]:
    """Decode a PNG: (Y, X, 3)."""
    found: npt.NDArray[np.float32] = imread(io.BytesIO(content), format="png")
    return np.rint(found[..., :3] * 255).astype(np.uint8)


def share(content: bytes, colour: Sequence[int]) -> float:
    """Give the share of a picture that has a colour."""
    return float((pixels(content) == colour).all(-1).mean())


def three_rows(**options: Any) -> bytes:  # noqa: ANN401
    """Three grey rows of 40 x 60 px; patches of 4 x 5, those of the second row red and blue."""
    rgb = np.full((3, 4, 5, 3), 0.2, np.float32)
    rgb[1] = 0, 0, 1
    rgb[1, :, :2] = 1, 0, 0
    given = {
        "pictures": [np.full((40, 60), 0.5, np.float32)] * 3,
        "rgb": rgb,
        "foreground": np.zeros((3, 4, 5), np.bool_),
        "title": "",
    }
    given |= options
    return component_picture(
        given["pictures"], given["rgb"], given["foreground"], title=given["title"]
    )


def test_components_are_drawn_patch_by_patch() -> None:
    drawn = three_rows()
    red, blue = (share(drawn, colour) for colour in ((255, 0, 0), (0, 0, 255)))
    assert red / blue == pytest.approx(2 / 3, rel=0.05)
    # A ninth of the panels, but for what is between them; nothing in between both colours.
    assert 0.08 < red + blue < 1 / 9
    seen = pixels(drawn).astype(int)
    assert ((seen[..., 0] > 60) & (seen[..., 2] > 60) & (seen[..., 1] < 20)).sum() == 0


def test_a_row_of_the_item_is_a_column() -> None:
    height, width = read_png(three_rows())
    assert height / width == pytest.approx(3 * 40 / (3 * 60), rel=0.02)
    one = component_picture(
        [np.zeros((40, 60, 3), np.float32)],
        np.zeros((1, 4, 5, 3), np.float32),
        np.ones((1, 4, 5), np.bool_),
    )
    assert read_png(one) == (height, pytest.approx(width / 3, abs=1))
    titled = three_rows(title="scan07")
    assert read_png(titled)[0] > height
    assert pixels(titled)[:25].min() < 100  # its letters, above panels whose grey is 128
    assert pixels(three_rows(title=" "))[:25].min() >= 100


def test_the_foreground_is_outlined() -> None:
    yellow = (255, 255, 0)
    assert share(three_rows(), yellow) == 0
    foreground = np.zeros((3, 4, 5), np.bool_)
    foreground[2, 1:3, 1:4] = True
    seen = (pixels(three_rows(foreground=foreground)) == yellow).all(-1)
    assert seen.any()
    y, x = np.nonzero(seen)
    height, width = seen.shape
    # In the last panel below on the right, and there within it.
    assert y.min() > height * 2 / 3
    assert x.min() > width * 2 / 3
    # The outline is around 3 of 5 patches and 2 of 4: what it holds has that shape.
    panel = width / 3 * 0.97
    assert np.ptp(x) == pytest.approx(panel * 3 / 5, rel=0.06)
    assert np.ptp(y) == pytest.approx(panel * 40 / 60 * 2 / 4, rel=0.06)


def test_the_sides_of_patches() -> None:
    mask = np.zeros((2, 4), np.bool_)
    mask[1, 2:] = True
    found = {tuple(map(tuple, side)) for side in _patch_edges(mask).tolist()}
    assert found == {
        ((0.5, 0.5), (0.75, 0.5)),  # above both
        ((0.75, 0.5), (1.0, 0.5)),
        ((0.5, 1.0), (0.75, 1.0)),  # below, at the rim
        ((0.75, 1.0), (1.0, 1.0)),
        ((0.5, 0.5), (0.5, 1.0)),  # on the left
        ((1.0, 0.5), (1.0, 1.0)),  # on the right, at the rim
    }
    assert _patch_edges(np.zeros((3, 5), np.bool_)).shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pictures": []}, "1 to 16 rows are drawn beside each other, got 0"),
        ({"pictures": [np.zeros((4, 5), np.float32)] * 17}, "got 17"),
        ({"pictures": [np.zeros((4, 5), np.float32)] * 2}, "2 pictures need as many maps"),
        ({"foreground": np.zeros((3, 5, 4), np.bool_)}, r"got \(3, 4, 5, 3\) and \(3, 5, 4\)"),
    ],
    ids=["none", "too many", "fewer than maps", "another grid"],
)
def test_components_that_do_not_belong_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        three_rows(**options)


def section(**options: Any) -> bytes:  # noqa: ANN401
    """Draw a section of 30 x 50 px; neuron 7 takes its left two fifths, nothing the rest."""
    ids = np.zeros((30, 50), np.uint64)
    ids[:, :20] = 7
    given = {"affinities": np.zeros((3, 30, 50), np.float32), "segments": ids, "truth": ids}
    given |= options
    picture = np.full((30, 50), 0.5, np.float32)
    return affinity_picture(picture, given["affinities"], given["segments"], given["truth"])


def test_a_section_has_a_panel_for_each_thing_that_is_known() -> None:
    (height, all_six), five, four = (
        read_png(section()),
        read_png(section(truth=None)),
        read_png(section(truth=None, segments=None)),
    )
    assert five == (height, pytest.approx(all_six * 5 / 6, abs=1))
    assert four == (height, pytest.approx(all_six * 4 / 6, abs=1))


def test_ids_have_their_colours_and_zero_is_black() -> None:
    colour = id_colours(np.array([7])).tolist()[0]
    both, found = section(), section(truth=None)
    assert share(section(truth=None, segments=None), colour) == 0
    assert share(both, colour) / (2 / 6) == pytest.approx(share(found, colour) / (1 / 5), rel=0.05)
    # Two fifths of a panel; affinities of 0 are black as well, but not where an id is.
    assert share(found, colour) == pytest.approx(0.4 / 5, rel=0.4)
    other = np.full((30, 50), 8)
    assert share(section(truth=other, segments=other), colour) == 0


def test_colours_of_ids_do_not_mix() -> None:
    stripes = np.full((30, 50), 7)
    stripes[:, ::2] = 8
    seen = pixels(section(segments=stripes, truth=None))
    panel = np.array_split(seen[len(seen) // 2 + 10], 5)[-1]
    drawn = {tuple(colour) for colour in panel[(panel < 255).any(1)].tolist()}
    assert drawn == {tuple(colour) for colour in id_colours(np.array([7, 8])).tolist()}


def test_panels_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def titles(figure: Any, panels: Any, title: str) -> bytes:  # noqa: ANN401
        said.extend([title, *(axes.get_title() for axes in panels)])
        return b""

    monkeypatch.setattr(figures, "picture_png", titles)
    ids = np.ones((3, 5), np.uint8)
    affinity_picture(np.zeros((3, 5), np.float32), np.zeros((3, 3, 5)), ids, ids, title="A")
    affinities = ["affinity z", "affinity y", "affinity x"]
    assert said == ["A", "section", *affinities, "truth", "segmentation"]


def test_truth_stands_before_what_was_found() -> None:
    truth, found = np.full((30, 50), 3), np.full((30, 50), 9)
    seen = pixels(section(truth=truth, segments=found))
    panels = np.array_split(seen[len(seen) // 2 + 10], 6)
    colours = [np.median(panel, axis=0).tolist() for panel in panels[-2:]]
    assert colours == id_colours(np.array([3, 9])).tolist()


def test_affinities_are_grey_in_their_order() -> None:
    affinities = np.stack([np.full((30, 50), value, np.float32) for value in (0.2, 0.6, 0.8)])
    seen = pixels(section(affinities=affinities, truth=None, segments=None))
    middle = seen[len(seen) // 2 + 10].astype(int)
    panels = np.array_split(middle, 4)
    greys = [np.median(panel, axis=0).tolist() for panel in panels]
    assert greys == [[128] * 3, [51] * 3, [153] * 3, [204] * 3]


def test_colours_of_ids() -> None:
    ids = np.array([[3, 0, 2**63 + 5], [3, 1, 2]], np.uint64)
    colours = id_colours(ids)
    assert (colours.shape, colours.dtype) == ((2, 3, 3), np.uint8)
    assert colours[0, 1].tolist() == [0, 0, 0]
    assert colours[0, 0].tolist() == colours[1, 0].tolist()
    np.testing.assert_array_equal(id_colours(ids[:, :1].astype(np.int32)), colours[:, :1])
    many = id_colours(np.arange(1, 1000))
    assert many.max(1).min() >= 153
    assert len(np.unique(many, axis=0)) > 990
    assert id_colours(np.zeros((0, 4), np.uint8)).shape == (0, 4, 3)
    # The first number of SplitMix64 from the seed 0, of which the id 1 is made.
    mixed = 0xE220A8397B1DCDAF
    hue, saturation, value = ((mixed >> at & 0xFFFF) / 0xFFFF for at in (0, 16, 32))
    wanted = colorsys.hsv_to_rgb(hue, 0.45 + 0.55 * saturation, 0.6 + 0.4 * value)
    np.testing.assert_allclose(id_colours(np.array(1)), np.array(wanted) * 255, atol=0.51)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"affinities": np.zeros((2, 30, 50))}, r"needs affinities of \(3, 30, 50\), got \(2, 30"),
        ({"truth": np.zeros((50, 30), np.uint8)}, r"truth of a section of \(30, 50\) is \(50, 30"),
        ({"segments": np.zeros((1, 30, 50), np.uint8)}, r"segmentation of a section of \(30, 50"),
        ({"segments": np.full((30, 50), -3)}, "ids are at least 0, got -3"),
    ],
    ids=["two affinities", "truth", "segments", "below 0"],
)
def test_what_is_of_another_section(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        section(**options)


def test_pictures_are_the_same_each_time() -> None:
    assert section() == section()
    assert three_rows() == three_rows()
