"""Pictures of registered pairs."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.image import imread

from probes import warp_figures
from probes.warp_figures import warp_picture

Array = npt.NDArray[Any]
SHAPE = (40, 60)
BLUE, ORANGE = "blue", "orange"
"""The first two colours of labels."""


def square(top: int, left: int, number: int = 1, side: int = 12) -> Array:
    labels = np.zeros(SHAPE, np.uint8)
    labels[top : top + side, left : left + side] = number
    return labels


def drawn(**options: Any) -> bytes:  # noqa: ANN401
    """Three black pictures of 40 x 60 px."""
    black = np.zeros(SHAPE, np.float32)
    given: dict[str, Any] = {"title": "", "names": ["one", "two"], **options}
    pictures = [given.pop(name, black) for name in ("source", "target", "warped")]
    return warp_picture(*pictures, given.pop("labels", None), **given)


def pixels(content: bytes) -> npt.NDArray[np.int64]:
    """Decode a PNG: (Y, X, 3)."""
    found: npt.NDArray[np.float32] = imread(io.BytesIO(content), format="png")
    return np.rint(found[..., :3] * 255).astype(np.int64)


def panels(content: bytes) -> list[npt.NDArray[np.int64]]:
    """Cut the three panels out: what is around them is white."""
    seen = pixels(content)
    middle = (seen[len(seen) // 2] < 250).any(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], middle, [0]])))
    assert len(edges) == 6
    found = []
    for left, right in edges.reshape(3, 2):
        white = np.flatnonzero((seen[:, left + 1] >= 250).all(-1))
        top, bottom = white[white < len(seen) // 2].max(), white[white > len(seen) // 2].min()
        found.append(seen[top + 1 : bottom, left:right])
    return found


def coloured(panel: npt.NDArray[np.int64], colour: str) -> npt.NDArray[np.bool_]:
    """What has a colour, or some of it, over black."""
    more_blue = panel[..., 2] - panel[..., 0]
    return more_blue > 40 if colour == BLUE else more_blue < -80


def where(panel: npt.NDArray[np.int64], colour: str) -> Array | None:
    """The middle (y, x) of what has a colour, in pixels of the picture that was drawn."""
    y, x = np.nonzero(coloured(panel, colour))
    if not len(y):
        return None
    middle = np.array([(y.min() + y.max()) / 2, (x.min() + x.max()) / 2])
    return middle / panel.shape[:2] * SHAPE


def yellow(panel: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Lines of the grid, on black."""
    return (panel[..., 0] > 60) & (panel[..., 1] > 60) & (panel[..., 2] < 30)


def test_labels_are_outlined_where_they_are() -> None:
    labels = square(4, 6), square(20, 40), square(22, 30, number=2)
    source, target, warped = panels(drawn(labels=labels))
    for panel, colour, top, left in (
        (source, BLUE, 4, 6),
        (target, BLUE, 20, 40),
        (warped, BLUE, 20, 40),
        (warped, ORANGE, 22, 30),
    ):
        middle = where(panel, colour)
        assert middle is not None
        np.testing.assert_allclose(middle, [top + 6, left + 6], atol=1)
    assert where(source, ORANGE) is None
    assert where(target, ORANGE) is None
    assert all(where(panel, BLUE) is None for panel in panels(drawn()))


def test_labels_of_the_target_are_solid_and_warped_ones_are_dashed() -> None:
    only, nothing = square(10, 20, side=20), np.zeros(SHAPE, np.uint8)

    def count(labels: tuple[Array, Array, Array]) -> int:
        return int(coloured(panels(drawn(labels=labels))[2], BLUE).sum())

    solid, dashed = count((nothing, only, nothing)), count((nothing, nothing, only))
    assert 0.4 < dashed / solid < 0.85
    assert count((only, nothing, nothing)) == 0


def test_pictures_are_grey_in_their_order() -> None:
    greys = {
        name: np.full(SHAPE, value, np.float32)
        for name, value in (("source", 0.2), ("target", 0.4), ("warped", 0.8))
    }
    found = [np.median(panel, axis=(0, 1)).tolist() for panel in panels(drawn(**greys))]
    assert found == [[51] * 3, [102] * 3, [204] * 3]


def test_the_grid_lies_evenly_where_nothing_moves() -> None:
    none = np.zeros((2, *SHAPE), np.float32)
    plain, target, warped = panels(drawn(displacement=none))
    assert not yellow(plain).any()
    assert not yellow(target).any()
    lines = yellow(warped)
    upright = lines.mean(0) > 0.6
    level = lines.mean(1) > 0.6
    # Every 3 pixels of 60 along the longer side; those at the very edge are not seen.
    for seen, n in ((upright, 60), (level, 40)):
        starts = np.flatnonzero(np.diff(seen.astype(int)) == 1)
        expected = np.arange(3, n - 1, 3) + 0.5
        np.testing.assert_allclose((starts + 1) / len(seen) * n, expected, atol=0.5)


@pytest.mark.parametrize("axis", [0, 1])
def test_lines_of_the_source_are_moved_with_it(axis: int) -> None:
    """Sampled at x + 1: what was at 3 comes to lie at 2."""
    shift = np.zeros((2, *SHAPE), np.float32)
    shift[axis] = 1
    n, lines = SHAPE[axis], yellow(panels(drawn(displacement=shift))[2])
    seen = lines.mean(1 - axis) > 0.6
    starts = (np.flatnonzero(np.diff(seen.astype(int)) == 1) + 1) / len(seen) * n
    np.testing.assert_allclose(starts[:5], np.arange(2, 17, 3) + 0.5, atol=0.5)


def test_a_motion_out_of_the_picture_has_no_lines() -> None:
    away = np.full((2, *SHAPE), 500, np.float32)
    assert not yellow(panels(drawn(displacement=away))[2]).any()


def test_pixels_have_the_shape_that_the_spacing_says() -> None:
    def ratio(**options: Any) -> float:  # noqa: ANN401
        panel = panels(drawn(**options))[0]
        return panel.shape[0] / panel.shape[1]

    assert ratio() == pytest.approx(40 / 60, rel=0.02)
    assert ratio(spacing=(3.0, 2.0)) == pytest.approx(1, rel=0.02)
    # Cells of the grid are square in millimetres.
    none = np.zeros((2, *SHAPE), np.float32)
    lines = yellow(panels(drawn(spacing=(3.0, 2.0), displacement=none))[2])
    upright, level = (
        np.diff(np.flatnonzero(np.diff((lines.mean(axis) > 0.6).astype(int)) == 1)).mean()
        for axis in (0, 1)
    )
    assert upright == pytest.approx(level, rel=0.03)


def test_what_is_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def texts(figure: Any, panels: Any, title: str) -> bytes:  # noqa: ANN401
        legends = [text.get_text() for one in figure.legends for text in one.get_texts()]
        said.extend([title, *(axes.get_title() for axes in panels), *legends])
        return b""

    monkeypatch.setattr(warp_figures, "picture_png", texts)
    drawn(title="A", labels=(square(1, 2),) * 3)
    heads = ["A", "source (moving)", "target (fixed)", "warped"]
    assert said == [*heads, "one", "two", "labels", "warped labels"]
    said.clear()
    drawn(title="A")
    assert said == heads


def test_a_title_and_a_legend_take_nothing_from_the_pictures() -> None:
    plain = panels(drawn())[0].shape
    many = [f"structure {n}" for n in range(15)]
    for options in ({"title": "scan07"}, {"labels": (square(1, 2),) * 3, "names": many}):
        found = panels(drawn(**options))[0].shape
        assert found[1] == pytest.approx(plain[1], rel=0.03)


def test_labels_that_fill_the_picture_have_no_outline() -> None:
    whole = np.ones(SHAPE, np.int64)
    assert all(where(panel, BLUE) is None for panel in panels(drawn(labels=(whole,) * 3)))


def test_pictures_are_the_same_each_time() -> None:
    options = {"labels": (square(1, 2),) * 3, "displacement": np.ones((2, *SHAPE), np.float32)}
    assert drawn(**options) == drawn(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warped": np.zeros((40, 61), np.float32)}, r"of one size, .*\(40, 60\), \(40, 61\)"),
        ({"labels": (np.zeros((60, 40), np.uint8),) * 3}, r"of one size, .*, \(60, 40\)"),
        (
            dict.fromkeys(("source", "target", "warped"), np.zeros((2, 3, 4), np.float32)),
            r"planes \(Y, X\) of one size, .*\(2, 3, 4\)",
        ),
        (
            dict.fromkeys(("source", "target", "warped"), np.zeros((1, 4), np.float32)),
            "at least 2 x 2, got",
        ),
        ({"labels": (square(1, 2, number=3),) * 3}, "labels are 0 to 2, as there are 2 names; got"),
        ({"labels": (-square(1, 2).astype(int),) * 3}, "got -1 to 0"),
        ({"displacement": np.zeros((3, 40, 60))}, r"a displacement of \(2, 40, 60\), got \(3, 40"),
        ({"displacement": np.full((2, 40, 60), np.nan)}, "must be finite, it is not"),
    ],
)
def test_what_does_not_belong_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        drawn(**options)
