import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter

from probes.registration import convexadam
from probes.registration.convexadam import ConvexAdamSettings, convex_adam
from probes.registration.displacement import folding, log_jacobian_sd, warp
from probes.registration.mind import mind_ssc

Array = npt.NDArray[Any]


def noise(shape: tuple[int, ...], width: float, seed: int) -> Array:
    """Smooth along all axes but the first, which is that of channels."""
    values = np.random.default_rng(seed).standard_normal(shape)
    smooth = gaussian_filter(values, [0, *[width] * (len(shape) - 1)])
    return (smooth / smooth.std()).astype(np.float32)


def bump(labels: Array, size: tuple[float, ...], widths: tuple[float, ...]) -> Array:
    """A displacement of a size where the labels are, less and less of it around them."""
    middle = np.argwhere(labels > 0).mean(0)
    away = sum(
        ((x - m) / width) ** 2
        for x, m, width in zip(np.indices(labels.shape), middle, widths, strict=True)
    )
    u = np.exp(-away / 2) * np.array(size).reshape(-1, *(1 for _ in size))
    return u.astype(np.float32)


def dice(one: Array, other: Array) -> float:
    shares = []
    for label in np.unique(other)[1:]:
        both = ((one == label) & (other == label)).sum()
        shares.append(2 * both / ((one == label).sum() + (other == label).sum()))
    return float(np.mean(shares))


def length(u: Array) -> Array:
    found: Array = np.linalg.norm(u, axis=0)
    return found


def heart(shared_data: Path, patient: str, shape: tuple[int, int, int]) -> list[Array]:
    """Both volumes and their labels, (Z, Y, X), around the myocardium, voxels of 1.5 x 1.5 mm.

    They are of the end of the systole, then of the diastole.
    """
    nibabel = pytest.importorskip("nibabel")
    folder = shared_data / "cardiac/acdc/training" / patient
    paths = sorted(folder.glob("*_frame??.nii.gz"), reverse=True)
    if not paths:
        pytest.skip("the hearts are not among the real images")
    truth = nibabel.load(str(paths[1]).replace(".nii", "_gt.nii"))
    middle = np.argwhere(np.asarray(truth.dataobj).T == 2).mean(0)
    steps = np.array([3.15, 1.5, 1.5]) / np.array(truth.header.get_zooms()[::-1])
    axes = [
        m + step * (np.arange(n) - (n - 1) / 2)
        for m, step, n in zip(middle, steps, shape, strict=True)
    ]
    at = np.meshgrid(*axes, indexing="ij")
    found = []
    for ending, order in ((".nii", 1), ("_gt.nii", 0)):
        for path in paths:
            values = np.asarray(nibabel.load(str(path).replace(".nii", ending)).dataobj).T
            values = map_coordinates(values.astype(np.float32), at, order=order, mode="nearest")
            found.append(values if order else values.astype(np.uint8))
    return found


# Against the public package.


OLD_CALLS = pytest.mark.filterwarnings("ignore:Default grid_sample and affine_grid behavior")


def of_package(fixed: Array, moving: Array, **options: Any) -> Array:  # noqa: ANN401
    from convexAdam.convex_adam_MIND import convex_adam_pt

    options = {"dtype": torch.float32, "device": torch.device("cpu"), **options}
    return np.moveaxis(convex_adam_pt(fixed, moving, **options), -1, 0)


@OLD_CALLS
@pytest.mark.parametrize(("spacing", "reach"), [(4, 3), (3, 4), (5, 2)])
def test_matching_is_the_public_packages(spacing: int, reach: int) -> None:
    pytest.importorskip("convexAdam")
    moving = noise((1, 17, 32, 27), 1.5, 0)[0] + noise((1, 17, 32, 27), 4, 1)[0]
    fixed = np.roll(moving, (2, -3, 5), (0, 1, 2)) + 0.3 * noise((1, 17, 32, 27), 1, 2)[0]
    settings = ConvexAdamSettings(grid_sp=spacing, disp_hw=reach, niter=0, as_published=True)
    ours = convex_adam(mind_ssc(fixed), mind_ssc(moving), settings)
    # With a weight of 0 it leaves Adam out.
    theirs = of_package(fixed, moving, grid_sp=spacing, disp_hw=reach, lambda_weight=0)
    assert length(theirs).mean() > 0.2
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@OLD_CALLS
@pytest.mark.parametrize(("spacing", "spacing_adam"), [(6, 2), (2, 2), (4, 3)])
def test_displacements_are_the_public_packages(
    shared_data: Path, spacing: int, spacing_adam: int
) -> None:
    pytest.importorskip("convexAdam")
    fixed, moving, _, _ = heart(shared_data, "patient001", (20, 44, 52))
    stacks = mind_ssc(fixed), mind_ssc(moving)
    common: dict[str, Any] = {"grid_sp": spacing, "grid_sp_adam": spacing_adam}
    theirs = of_package(fixed, moving, selected_niter=40, **common)
    common["niter"] = 40
    ours = convex_adam(*stacks, ConvexAdamSettings(as_published=True, **common))
    assert length(theirs).mean() > 0.5
    assert length(ours - theirs).mean() <= 0.05
    # Measured exactly, they are others, but not by much.
    exact = convex_adam(*stacks, ConvexAdamSettings(**common))
    assert 0.05 < length(exact - theirs).mean() < 0.25 * length(theirs).mean()


# Against the definition, step by step.


def match_by_hand(
    fixed: Array, moving: Array, spacing: tuple[int, ...], reach: tuple[int, ...], consistent: bool
) -> Array:
    """The displacement of cells, in cells, as METHODS of the papers have it; in float64."""
    axes = len(spacing)

    def pooled(stack: Array) -> Array:
        stack = stack.astype(float)
        for axis, step in enumerate(spacing, 1):
            cells = stack.shape[axis] // step
            stack = stack.take(range(cells * step), axis)
            shape = (*stack.shape[:axis], cells, step, *stack.shape[axis + 1 :])
            stack = stack.reshape(shape).mean(axis + 1)
        return stack

    def box(values: Array) -> Array:
        return uniform_filter(values, 3, mode="constant", axes=range(-axes, 0))

    def one_way(fixed: Array, moving: Array) -> Array:
        steps = np.array(list(product(*(range(-one, one + 1) for one in reach))))
        wide = np.pad(moving, [(0, 0), *((one, one) for one in reach)])
        costs = []
        for step in steps:
            starts = step + reach
            part = tuple(slice(s, s + n) for s, n in zip(starts, fixed.shape[1:], strict=True))
            costs.append(box(box(((fixed - wide[(slice(None), *part)]) ** 2).sum(0))))
        cells = (1,) * axes
        every = steps.reshape(len(steps), axes, *cells)
        u = np.zeros((axes, *fixed.shape[1:]))
        # The first match is without a price; but of what is outside, the nearest is taken.
        for price in (1e-7, 0.003, 0.01, 0.03, 0.1, 0.3, 1):
            choice = np.argmin(np.array(costs) + price * ((every - u) ** 2).sum(1), 0)
            u = box(np.moveaxis(steps[choice].astype(float), -1, 0))
        return u

    def at(field: Array, u: Array) -> Array:
        places = np.indices(u.shape[1:]) + u
        return np.stack(
            [map_coordinates(one, places, order=1, mode="grid-constant") for one in field]
        )

    fixed, moving = pooled(fixed), pooled(moving)
    forth, back = one_way(fixed, moving), one_way(moving, fixed)
    for _ in range(15 if consistent else 0):
        forth, back = (forth - at(back, forth)) / 2, (back - at(forth, back)) / 2
    return forth


@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize(
    ("grid", "spacing", "reach"),
    [
        ((20, 27), (2, 3), (3, 2)),
        ((9, 14), (1, 2), (0, 2)),
        ((8, 15, 13), (2, 3, 1), (1, 2, 3)),
    ],
)
def test_matching_is_the_definition(
    grid: tuple[int, ...], spacing: tuple[int, ...], reach: tuple[int, ...], consistent: bool
) -> None:
    fixed, moving = noise((3, *grid), 1.2, 3), noise((3, *grid), 1.2, 4)
    fixed = fixed + np.roll(moving, 2, -1)
    settings = ConvexAdamSettings(
        grid_sp=spacing, disp_hw=reach, niter=0, inverse_consistency=consistent
    )
    found = convex_adam(fixed, moving, settings)
    u = match_by_hand(fixed, moving, spacing, reach, consistent)
    # Cells' centres are at (cell + 0.5) * spacing - 0.5 voxels; beyond the outermost it goes on.
    at = [
        np.clip((np.arange(n) + 0.5) / step - 0.5, 0, n // step - 1)
        for n, step in zip(grid, spacing, strict=True)
    ]
    places = np.meshgrid(*at, indexing="ij")
    for axis, step in enumerate(spacing):
        expected = step * map_coordinates(u[axis], places, order=1)
        np.testing.assert_allclose(found[axis], expected, atol=1e-4)


def torchs_sample(values: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Values at x + u, both in cells."""
    grid = values.shape[1:]
    places = torch.from_numpy(np.indices(grid).astype(np.float32)) + u
    # It wants the last axis first, in [-1, 1] from edge to edge.
    scale = [(2 * p + 1) / n - 1 for p, n in zip(places, grid, strict=True)]
    at = torch.stack(scale[::-1], -1)[None]
    return torch.nn.functional.grid_sample(values[None], at, align_corners=False)[0]


@pytest.mark.parametrize("grid", [(7, 10, 9), (12, 11)])
def test_the_gradient_is_autograds(grid: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convexadam, "_TOGETHER", 100)  # several parts, the last a smaller one
    fixed, moving = (torch.from_numpy(noise((5, *grid), 1, seed)) for seed in (5, 6))
    u = torch.from_numpy(3 * noise((len(grid), *grid), 1, 7)).requires_grad_()
    sampled = torchs_sample(moving, u)
    (12 * (sampled - fixed).square().mean()).backward()
    found = convexadam._Likeness(fixed, moving, False).gradient(u.detach())
    torch.testing.assert_close(found, u.grad, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(
        convexadam._sampled(moving, u.detach(), False), sampled, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("grid", [(6, 9, 8), (12, 11)])
def test_iterations_are_those_of_torchs_adam(grid: tuple[int, ...]) -> None:
    fixed, moving = (torch.from_numpy(noise((4, *grid), 2, seed)) for seed in (8, 9))
    axes = len(grid)
    start = torch.from_numpy(0.4 * noise((axes, *grid), 2, 10))
    settings = ConvexAdamSettings(lambda_weight=0.7, niter=4, learning_rate=0.05).along_axes(axes)
    found = convexadam._optimised(start, fixed, moving, settings)
    pool = torch.nn.functional.avg_pool3d if axes == 3 else torch.nn.functional.avg_pool2d
    parameters = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=0.05)
    for _ in range(4):
        u = parameters
        for _ in range(3):
            u = pool(u[None], 3, stride=1, padding=1)[0]
        loss = 12 * (torchs_sample(moving, u) - fixed).square().mean()
        loss = loss + 0.7 * sum(u.diff(dim=axis).square().mean() for axis in range(1, axes + 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (u - start).abs().max() > 0.1
    torch.testing.assert_close(found, u.detach(), atol=1e-4, rtol=0)


# What is known beforehand.


@pytest.mark.parametrize(
    ("grid", "shift", "settings"),
    [
        ((18, 46, 42), (2, -5, 4), ConvexAdamSettings(grid_sp=(1, 4, 2), disp_hw=(3, 2, 3))),
        ((25, 37, 41), (3, -3, 3), ConvexAdamSettings(grid_sp=3, disp_hw=2)),
        ((45, 52), (7, -6), ConvexAdamSettings(disp_hw=5)),
    ],
)
def test_a_shift_is_found_in_voxels(
    grid: tuple[int, ...], shift: tuple[int, ...], settings: ConvexAdamSettings
) -> None:
    fixed = noise((1, *grid), 1.5, 11)[0]
    moving = np.roll(fixed, shift, range(len(grid)))
    u = convex_adam(mind_ssc(fixed), mind_ssc(moving), settings)
    assert (u.shape, u.dtype) == ((len(grid), *grid), np.float32)
    inner = tuple(slice(n // 3, n - n // 3) for n in grid)
    for found, expected in zip(u, shift, strict=True):
        assert found[inner].mean() == pytest.approx(expected, abs=0.1)


def hold_to_a_known_displacement(
    image: Array, labels: Array, u: Array, settings: ConvexAdamSettings
) -> None:
    fixed, truth = warp(image, u), warp(labels, u, method="nearest")
    found = convex_adam(mind_ssc(fixed), mind_ssc(image), settings)
    assert dice(labels, truth) < 0.75
    assert dice(warp(labels, found, method="nearest"), truth) >= 0.9
    assert length(u).mean() > 1.5
    assert length(found - u).mean() <= 1
    assert length(found - u)[truth > 0].mean() <= 1
    assert folding(found) < 0.005


ANISOTROPIC = ConvexAdamSettings(grid_sp=(2, 4, 4), disp_hw=(2, 3, 3), lambda_weight=0.75)
FLAT = ConvexAdamSettings(grid_sp=2, disp_hw=6)


@pytest.mark.parametrize("settings", [ANISOTROPIC, ConvexAdamSettings(grid_sp=4, disp_hw=3)])
def test_a_known_displacement_of_a_heart(shared_data: Path, settings: ConvexAdamSettings) -> None:
    image, _, labels, _ = heart(shared_data, "patient022", (22, 72, 80))
    u = bump(labels, (2, -6, 6), (10, 22, 22))
    hold_to_a_known_displacement(image, labels, u, settings)


def test_a_known_displacement_of_a_section(shared_data: Path) -> None:
    image, _, labels, _ = heart(shared_data, "patient001", (9, 80, 88))
    section, truth = image[4], labels[4]
    hold_to_a_known_displacement(section, truth, bump(truth, (-6, 7), (20, 20)), FLAT)


@pytest.mark.parametrize(
    ("grid", "size", "settings"),
    [((20, 52, 48), (2, -5, 5), ANISOTROPIC), ((72, 80), (-6, 7), FLAT)],
)
def test_a_known_displacement_of_structures(
    grid: tuple[int, ...], size: tuple[float, ...], settings: ConvexAdamSettings
) -> None:
    away = [(x - n / 2) / (n / 4) for x, n in zip(np.indices(grid), grid, strict=True)]
    labels = np.where(np.linalg.norm(away, axis=0) < 1, 1 + (away[-1] > 0), 0).astype(np.uint8)
    image = np.float32([0, 3, 1])[labels] + noise((1, *grid), 4, 12)[0]
    image += 0.5 * noise((1, *grid), 1.5, 13)[0]
    u = bump(labels, size, tuple(n / 4 for n in grid))
    hold_to_a_known_displacement(image, labels, u, settings)


def test_real_hearts_are_registered(shared_data: Path) -> None:
    fixed, moving, truth, labels = heart(shared_data, "patient022", (20, 64, 64))
    u = convex_adam(mind_ssc(fixed), mind_ssc(moving), ConvexAdamSettings(grid_sp=(2, 4, 4)))
    before, after = dice(labels, truth), dice(warp(labels, u, method="nearest"), truth)
    assert before < 0.6
    assert after > before + 0.1
    assert folding(u) < 0.005


# What the settings do.


def pair(grid: tuple[int, ...] = (26, 31)) -> tuple[Array, Array]:
    moving = noise((3, *grid), 2, 14)
    return np.roll(moving, 2, -1) + 0.2 * noise((3, *grid), 1, 15), moving


def test_the_result_is_the_same_each_time() -> None:
    fixed, moving = pair((13, 16, 22))
    settings = ConvexAdamSettings(niter=10)
    once = convex_adam(fixed, moving, settings)
    assert once.tobytes() == convex_adam(fixed.copy(), moving.copy(), settings).tobytes()


def test_where_nothing_differs_nothing_is_displaced() -> None:
    fixed, moving = pair()
    fixed[:, :, :18] = moving[:, :, :18] = 1.5
    u = convex_adam(fixed, moving, ConvexAdamSettings(niter=0, disp_hw=3))
    np.testing.assert_array_equal(u[:, 8:-8, 8:10], 0)
    assert np.abs(u[1, :, 22:]).mean() > 0.5


def test_smoothness_has_its_weight() -> None:
    rough, smooth = (
        log_jacobian_sd(convex_adam(*pair(), ConvexAdamSettings(lambda_weight=weight)))
        for weight in (0, 100)
    )
    assert 0 < smooth < rough / 2


def test_the_result_is_smoothed() -> None:
    plain = convex_adam(*pair(), ConvexAdamSettings(niter=5))
    found = convex_adam(*pair(), ConvexAdamSettings(niter=5, smooth=5))
    for _ in range(3):
        plain = uniform_filter(plain, 5, mode="constant", axes=(1, 2))
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_both_directions_are_each_others_inverse() -> None:
    moving = noise((3, 32, 40), 2, 16)
    u = 3 * noise((2, 32, 40), 8, 17)
    fixed = warp(moving, u) + 0.5 * noise((3, 32, 40), 1, 18)

    def left(**options: Any) -> float:  # noqa: ANN401
        settings = ConvexAdamSettings(niter=0, **options)
        forth, back = convex_adam(fixed, moving, settings), convex_adam(moving, fixed, settings)
        return float(length(forth + warp(back, forth))[8:-8, 8:-8].mean())

    assert left() < left(inverse_consistency=False) / 2


def test_one_number_is_for_all_axes() -> None:
    plain = ConvexAdamSettings(grid_sp=2, disp_hw=3, grid_sp_adam=1)
    spread = ConvexAdamSettings(grid_sp=(2, 2), disp_hw=(3, 3), grid_sp_adam=(1, 1))
    assert plain.along_axes(2) == spread == spread.along_axes(2)


@pytest.mark.gpu
@pytest.mark.parametrize("grid", [(13, 16, 22), (26, 31)])
def test_a_gpu_finds_the_same(grid: tuple[int, ...]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    for niter, most in ((0, 1e-4), (40, 0.05)):
        settings = ConvexAdamSettings(niter=niter)
        ours, theirs = (convex_adam(*pair(grid), settings, device=one) for one in ("cpu", "cuda"))
        assert np.abs(ours - theirs).mean() <= most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_sp": 0}, "grid_sp must be a whole number of at least 1.*got 0"),
        ({"grid_sp": (2, 1.5)}, r"grid_sp .*got \(2, 1.5\)"),
        ({"grid_sp": ()}, r"grid_sp .*got \(\)"),
        ({"grid_sp_adam": True}, "grid_sp_adam .*got True"),
        ({"disp_hw": (1, -1)}, "disp_hw must be a whole number of at least 0"),
        ({"disp_hw": (0, 0)}, "disp_hw must be above 0 along some axis"),
        ({"niter": -1}, "niter .*got -1"),
        ({"niter": 2.5}, "niter .*got 2.5"),
        ({"smooth": 4}, "smooth must be 0 or an odd number of voxels, got 4"),
        ({"smooth": -3}, "smooth .*got -3"),
        ({"lambda_weight": -0.1}, "lambda_weight must be at least 0"),
        ({"lambda_weight": float("nan")}, "lambda_weight .*nan"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
    ],
)
def test_settings_out_of_range(options: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message) as caught:
        ConvexAdamSettings(**options)
    assert "\n" not in str(caught.value)


FINE = noise((2, 8, 9), 1, 0)


@pytest.mark.parametrize(
    ("fixed", "moving", "options", "message"),
    [
        (FINE[0], FINE[0], {}, r"\(channels, Z, Y, X\) or \(channels, Y, X\), got \(8, 9\)"),
        (FINE[:0], FINE[:0], {}, r"got \(0, 8, 9\)"),
        (FINE, FINE[:, :7], {}, r"one shape, got \(2, 8, 9\) and \(2, 7, 9\)"),
        (FINE, FINE * np.nan, {}, "moving features must be finite"),
        (np.ones_like(FINE), FINE, {}, "fixed features must vary"),
        (FINE, FINE, {"grid_sp": 5}, r"grid_sp \(5, 5\) leaves \(1, 1\) cells.*\(8, 9\)"),
        (FINE, FINE, {"grid_sp_adam": (1, 6)}, r"grid_sp_adam \(1, 6\) leaves \(8, 1\) cells"),
        (FINE, FINE, {"grid_sp": (2, 2, 2)}, r"grid_sp must be 1 number or 2, got \(2, 2, 2\)"),
        (FINE, FINE, {"disp_hw": 9999}, "too many to match"),
    ],
)
def test_what_cannot_be_registered(fixed: Array, moving: Array, options: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message) as caught:
        convex_adam(fixed, moving, ConvexAdamSettings(**options))
    assert "\n" not in str(caught.value)


def test_torch_is_imported_late() -> None:
    names = "convexadam", "displacement", "mind", "pca"
    code = "import sys, probes.registration\n"
    code += "".join(f"import probes.registration.{name}\n" for name in names)
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
