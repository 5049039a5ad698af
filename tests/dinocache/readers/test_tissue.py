import numpy as np
import pytest

from dinocache.readers.tissue import find_tissue, outline, saturation_of, tile_shares

PLAIN = {
    "saturation": 8,
    "otsu": False,
    "median": 1,
    "close": 0,
    "min_area": 0,
    "min_hole": 0,
    "max_holes": 99,
}


def stained(mask: np.ndarray) -> np.ndarray:
    """Make a picture that is pink where a mask is true, and of glass elsewhere."""
    rgb = np.full((*mask.shape, 3), 240, np.uint8)
    rgb[mask] = (200, 100, 150)
    return rgb


def drawn(picture: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in picture.split()])


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        pytest.param((0, 0, 0), 0, id="black"),
        pytest.param((255, 255, 255), 0, id="white"),
        pytest.param((200, 100, 150), 128, id="127.5-goes-up"),
        pytest.param((9, 0, 4), 255, id="full-even-if-dark"),
        pytest.param((250, 240, 245), 10, id="10.2"),
    ],
)
def test_saturation(rgb: tuple[int, int, int], expected: int) -> None:
    assert saturation_of(np.array([[rgb]], np.uint8)).tolist() == [[expected]]


def test_what_is_above_the_threshold_is_tissue() -> None:
    rgb = np.array([[(255, 247, 250), (255, 246, 250)]], np.uint8)  # 8 and 9
    assert find_tissue(rgb, **PLAIN).tolist() == [[False, True]]


def test_otsu_parts_two_humps() -> None:
    rgb = np.array([[(100, 95, 97)] * 3 + [(100, 80, 90)] * 2 + [(100, 30, 50)] * 4], np.uint8)
    assert find_tissue(rgb, **PLAIN).sum() == 9
    assert find_tissue(rgb, **PLAIN | {"otsu": True}).tolist() == [[False] * 5 + [True] * 4]


def test_otsu_of_one_value_finds_all_or_nothing() -> None:
    blank = np.full((4, 5, 3), 240, np.uint8)
    assert not find_tissue(blank, **PLAIN | {"otsu": True}).any()


def test_the_median_takes_specks_away_and_keeps_areas() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2, 3] = True
    mask[:, 20:] = True
    found = find_tissue(stained(mask), **PLAIN | {"median": 3})
    assert not found[:, :19].any()
    assert found[:, 21:].all()


@pytest.mark.parametrize("side", [2, 3, 4])
def test_the_closing_fills_gaps_narrower_than_its_side_and_moves_nothing(side: int) -> None:
    mask = np.zeros((15, 24), bool)
    mask[4:10, 2:8] = mask[4:10, 8 + side - 1 : 20] = True
    closed = find_tissue(stained(mask), **PLAIN | {"close": side})
    expected = np.zeros_like(mask)
    expected[4:10, 2:20] = True
    np.testing.assert_array_equal(closed, expected)


def test_the_closing_reaches_to_no_edge() -> None:
    mask = np.zeros((9, 11), bool)
    mask[1:8, 1:10] = True
    closed = find_tissue(stained(mask), **PLAIN | {"close": 4})
    np.testing.assert_array_equal(closed, mask)


def test_pieces_up_to_the_area_are_dropped_and_corners_join() -> None:
    mask = drawn(
        """
        ##...#.
        ##....#
        ...#...
        ..#....
        .#....#
        """
    )
    found = find_tissue(stained(mask), **PLAIN | {"min_area": 2})
    expected = mask.copy()
    expected[0, 5] = expected[1, 6] = expected[4, 6] = False
    np.testing.assert_array_equal(found, expected)


HOLES = """
    ############
    #.##..######
    ####..##..##
    ########..##
    ####.#######
    #####.######
    ..##########
"""
"""Holes of 1, 4, 4, 1 and 1 px (corners join no background); the notch is none."""


@pytest.mark.parametrize(
    ("min_hole", "max_holes", "kept"),
    [
        pytest.param(0, 99, [(1, 1), (1, 4), (2, 8), (4, 4), (5, 5)], id="all"),
        pytest.param(1, 99, [(1, 4), (2, 8)], id="larger-than-the-area"),
        pytest.param(0, 3, [(1, 1), (1, 4), (2, 8)], id="the-largest-then-the-first"),
        pytest.param(4, 99, [], id="none"),
        pytest.param(0, 0, [], id="none-allowed"),
    ],
)
def test_holes(min_hole: float, max_holes: int, kept: list[tuple[int, int]]) -> None:
    mask = drawn(HOLES)
    found = find_tissue(stained(mask), **PLAIN | {"min_hole": min_hole, "max_holes": max_holes})
    corners = [(1, 1), (1, 4), (2, 8), (4, 4), (5, 5)]
    assert [at for at in corners if not found[at]] == kept
    assert not found[6, :2].any()
    assert found[mask].all()


def test_each_piece_has_its_own_holes() -> None:
    mask = np.zeros((9, 23), bool)
    mask[1:8, 1:10] = mask[1:8, 12:22] = True
    mask[2, 2] = mask[4:6, 4:7] = mask[3, 14] = mask[5:7, 16:18] = False
    found = find_tissue(stained(mask), **PLAIN | {"max_holes": 1})
    assert found[2, 2]
    assert found[3, 14]
    assert not found[4:6, 4:7].any()
    assert not found[5:7, 16:18].any()


def test_a_dropped_island_counts_to_its_hole() -> None:
    mask = np.zeros((9, 11), bool)
    mask[1:8, 1:10] = True
    mask[2:7, 2:9] = False
    mask[4, 5] = True
    found = find_tissue(stained(mask), **PLAIN | {"min_area": 1, "min_hole": 34})
    assert not found[2:7, 2:9].any()
    filled = find_tissue(stained(mask), **PLAIN | {"min_area": 1, "min_hole": 35})
    assert filled[1:8, 1:10].all()


def test_shares_of_tiles_count_fractions_of_pixels() -> None:
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:4] = True
    left = np.array([0.0, 1.5, 2.25, 3.5, 5.5])
    top = np.array([0.0, 1.5, 4.0])
    side = 1.5
    expected = np.zeros((len(top), len(left)))
    for line, y in enumerate(top):
        for column, x in enumerate(left):
            high = max(0, min(y + side, 3) - max(y, 1))
            wide = max(0, min(x + side, 4) - max(x, 2))
            expected[line, column] = high * wide / side**2
    np.testing.assert_allclose(tile_shares(mask, left, top, side), expected, atol=1e-12)
    assert expected[1].tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3, 0])


def test_shares_are_those_of_counting() -> None:
    generator = np.random.default_rng(3)
    mask = generator.random((13, 17)) < 0.4
    shares = tile_shares(mask, np.arange(0, 15, 3.0), np.arange(0, 12, 3.0), 3)
    counted = mask[:12, :15].reshape(4, 3, 5, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(shares, counted, atol=1e-12)


def test_the_outline_is_what_touches_the_glass() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:5, 1:7] = True
    expected = mask.copy()
    expected[2:4, 2:6] = False
    np.testing.assert_array_equal(outline(mask), expected)
