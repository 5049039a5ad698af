"""Registration by stacks of features: dense matching, coupled convex smoothing, then Adam."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise, product
from math import isfinite, prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ConvexAdamSettings", "convex_adam"]

_COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Price of a squared cell between a match and the smoothed field; one round of each."""
_ROUNDS = 15
"""In which the two directions are made inverse to each other."""
_NEAREST = 1e-7
"""Price of a squared cell in the first match: where nothing differs, nothing is displaced."""
_TOGETHER = 8192
"""Places looked up at once on a CPU: what is computed with them stays in its cache."""
_TOGETHER_GPU = 1 << 20
_MOST_COSTS = 1 << 32
"""Displacements times cells that are matched: 16 GiB."""
_FADE, _FADE_SQUARES, _EPSILON = 0.9, 0.999, 1e-8
"""Of Adam, as it is commonly used."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ConvexAdamSettings:
    """How two stacks of features are registered.

    Attributes:
        grid_sp: Voxels a cell of the matching along each axis, one number or one an axis.
        disp_hw: How many such cells are searched to each side; likewise.
        lambda_weight: Weight of the smoothness in the optimisation by Adam.
        grid_sp_adam: Voxels a cell of that optimisation; like grid_sp.
        niter: Its iterations; with 0 the result is that of the matching.
        learning_rate: Of Adam, cells.
        smooth: Width of a box filter that the result passes three times, voxels, odd; 0 is none.
        inverse_consistency: Whether both directions are matched and made inverse to each other.
        as_published: Whether displacements are measured as convexAdam 0.2.0 does it, to reproduce
            figures made with that. There a displacement of n - 1 cells moves n along an axis of n
            cells, in the consistency and in the optimisation, so that results are too small by
            1 / n; cells that do not fill the grid are stretched to it; and the optimisation
            starts from a field that went through the voxels' grid.

    Raises:
        ValueError: If a setting is out of its range.
    """

    grid_sp: int | tuple[int, ...] = 2
    disp_hw: int | tuple[int, ...] = 4
    lambda_weight: float = 1.25
    grid_sp_adam: int | tuple[int, ...] = 2
    niter: int = 80
    learning_rate: float = 1.0
    smooth: int = 0
    inverse_consistency: bool = True
    as_published: bool = False

    def __post_init__(self) -> None:
        for name, least in (("grid_sp", 1), ("disp_hw", 0), ("grid_sp_adam", 1)):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or any(not _is_whole(one) or one < least for one in numbers):
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, or one for each axis, "
                    f"got {value!r}"
                )
        if max(self.disp_hw if isinstance(self.disp_hw, tuple) else (self.disp_hw,)) == 0:
            raise ValueError("disp_hw must be above 0 along some axis, got 0")
        if not _is_whole(self.niter) or self.niter < 0:
            raise ValueError(f"niter must be a whole number of at least 0, got {self.niter!r}")
        if not _is_whole(self.smooth) or self.smooth < 0 or (self.smooth and self.smooth % 2 == 0):
            raise ValueError(f"smooth must be 0 or an odd number of voxels, got {self.smooth!r}")
        if not (isfinite(self.lambda_weight) and self.lambda_weight >= 0):
            raise ValueError(f"lambda_weight must be at least 0, got {self.lambda_weight!r}")
        if not (isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate!r}")

    def along_axes(self, axes: int) -> "ConvexAdamSettings":
        """Return the same, with a number for each axis where one may be given.

        Raises:
            ValueError: If a setting has another count of numbers.
        """
        spread: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("grid_sp", "disp_hw", "grid_sp_adam"):
            value = spread[name]
            spread[name] = value if isinstance(value, tuple) else (value,) * axes
            if len(spread[name]) != axes:
                raise ValueError(f"{name} must be 1 number or {axes}, got {value!r}")
        return ConvexAdamSettings(**spread)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def convex_adam(
    fixed: npt.NDArray[Any],
    moving: npt.NDArray[Any],
    settings: ConvexAdamSettings,
    *,
    device: str = "cpu",
) -> Floats:
    """Find the displacement at which the moving features are like the fixed ones.

    1. Both stacks are averaged over cells of `grid_sp` voxels. For each displacement of whole
       cells, the squared difference of all channels, summed, passes a box filter of 3 cells twice.
    2. Each cell takes the cheapest displacement; six times the field is smoothed by a box filter,
       then each cell takes the cheapest again, where leaving the smooth field has a price that
       rises. With `inverse_consistency` the same is done from moving to fixed, and both fields
       are moved towards being each other's inverse.
    3. On cells of `grid_sp_adam` voxels, Adam goes on from there: 12 times the mean squared
       difference of features at x + u, plus `lambda_weight` times the mean squared difference of
       u between neighbours (in cells, summed over axes); u is what three box filters of 3 cells
       make of the parameters.

    What lies beyond the grid is 0, as are displacements for the box filters. A cell that the grid
    cuts off is left out, and displaced like its neighbour. On a CPU it is all done in the calling
    thread (pairs can be shared between processes), and the result is the same each time.

    Args:
        fixed: (channels, *grid), the grid (Z, Y, X) or (Y, X); computed with as float32.
        moving: Of the same shape.
        settings: See `ConvexAdamSettings`.
        device: A device of torch's, "cpu" or "cuda".

    Returns:
        (axes, *grid), voxels; see `probes.registration.displacement`.

    Raises:
        ValueError: If stacks are not as above, not finite or constant; a setting has not as many
            numbers as there are axes; a grid has fewer than 2 cells along an axis; or so much is
            to be matched that it needs more than 16 GiB.

    References:
        Siebert, Hansen and Heinrich, "ConvexAdam", IEEE TMI 2025, and the package convexAdam
        0.2.0, which has isotropic cells and volumes only. Its displacements without inverse
        consistency are of cells, not of voxels; here they are of voxels in any case.
    """
    import torch

    _check(fixed, moving)
    grid = fixed.shape[1:]
    settings = settings.along_axes(len(grid))
    coarse, fine = _cells(grid, settings)
    voxels = _Cells(grid, (1,) * len(grid))
    with torch.inference_mode(), _one_thread():
        there, here = (
            torch.from_numpy(np.ascontiguousarray(stack, np.float32)).to(device)
            for stack in (fixed, moving)
        )
        pooled = _pooled(there, coarse.spacing), _pooled(here, coarse.spacing)
        u, cells = _match(*pooled, settings), coarse
        if settings.niter:
            # By way of the voxels a field loses its peaks where both spacings are alike.
            way = (coarse, voxels, fine) if settings.as_published else (coarse, fine)
            start, cells = _carried(u, way, settings.as_published), fine
            pooled = _pooled(there, fine.spacing), _pooled(here, fine.spacing)
            u = _optimised(start, *pooled, settings)
        u = _carried(u, (cells, voxels), settings.as_published)
        if settings.smooth:
            u = _through([_box(n, settings.smooth, 3) for n in grid], u)
        displacement: Floats = u.cpu().numpy()
    return displacement


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in this thread alone, until the block ends.

    There are thousands of small steps. Threads that share each of them wait for each other: ten
    times as long where another process wants one of the cores.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Cells:
    """A grid of cells, and how many voxels each spans along each axis."""

    shape: tuple[int, ...]
    spacing: tuple[int, ...]


def _cells(grid: Sequence[int], settings: ConvexAdamSettings) -> tuple[_Cells, _Cells]:
    """Lay out the cells of the matching, and those of the optimisation."""
    made = []
    for name in ("grid_sp", "grid_sp_adam"):
        spacing: tuple[int, ...] = getattr(settings, name)
        shape = tuple(n // step for n, step in zip(grid, spacing, strict=True))
        if min(shape) < 2:
            raise ValueError(
                f"{name} {spacing} leaves {shape} cells of a grid {tuple(grid)}; at least 2 are "
                "needed along each axis"
            )
        made.append(_Cells(shape, spacing))
    widths = [2 * reach + 1 for reach in _per_axis(settings.disp_hw)]
    if prod(widths) * prod(made[0].shape) > _MOST_COSTS:
        raise ValueError(
            f"{prod(widths)} displacements of {prod(made[0].shape)} cells are too many to match; "
            "a wider grid_sp or a smaller disp_hw needs less"
        )
    return made[0], made[1]


def _per_axis(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _check(fixed: npt.NDArray[Any], moving: npt.NDArray[Any]) -> None:
    if fixed.ndim not in (3, 4) or 0 in fixed.shape:
        raise ValueError(
            f"features must be (channels, Z, Y, X) or (channels, Y, X), got {fixed.shape}"
        )
    if moving.shape != fixed.shape:
        raise ValueError(
            f"fixed and moving features must be of one shape, got {fixed.shape} and {moving.shape}"
        )
    for name, stack in (("fixed", fixed), ("moving", moving)):
        if not np.isfinite(stack).all():
            raise ValueError(f"{name} features must be finite, these are not")
        if stack.min() == stack.max():
            raise ValueError(f"{name} features must vary from place to place, these are constant")


def _pooled(stack: "Tensor", spacing: tuple[int, ...]) -> "Tensor":
    """Average over cells; what does not fill one is left out."""
    from torch.nn import functional

    pool = functional.avg_pool3d if len(spacing) == 3 else functional.avg_pool2d
    return pool(stack[None], spacing)[0]


def _match(fixed: "Tensor", moving: "Tensor", settings: ConvexAdamSettings) -> "Tensor":
    """Match cells, as the first two steps of `convex_adam`.

    Args:
        fixed: (channels, *cells).
        moving: Of the same shape.
        settings: With numbers for all axes.

    Returns:
        (axes, *cells), in cells.
    """
    reach = _per_axis(settings.disp_hw)
    widths = [2 * one + 1 for one in reach]
    # For both directions, one after the other: it is by far the largest.
    costs = fixed.new_empty(prod(widths[:-1]), widths[-1], *fixed.shape[1:])
    forth = _coupled(fixed, moving, reach, costs)
    if not settings.inverse_consistency:
        return forth
    back = _coupled(moving, fixed, reach, costs)
    for _ in range(_ROUNDS):
        forth, back = (
            (forth - _sampled(back, forth, settings.as_published)) / 2,
            (back - _sampled(forth, back, settings.as_published)) / 2,
        )
    return forth


def _coupled(
    fixed: "Tensor", moving: "Tensor", reach: tuple[int, ...], costs: "Tensor"
) -> "Tensor":
    """Find a smooth field that is cheap, (axes, *cells); `costs` is written over."""
    _fill(costs, fixed, moving, reach)
    shape = fixed.shape[1:]
    smooth = [_box(n, 3, 1).to(fixed.device) for n in shape]
    flat = costs.flatten(2)
    u = fixed.new_zeros(len(shape), prod(shape))
    for price in (_NEAREST, *_COUPLING):
        cheapest = _cheapest(flat, reach, u, price)
        u = _through(smooth, cheapest.view(-1, *shape)).flatten(1)
    return u.view(-1, *shape)


def _fill(costs: "Tensor", fixed: "Tensor", moving: "Tensor", reach: tuple[int, ...]) -> None:
    """Compute what each displacement costs each cell.

    Args:
        costs: (displacements along all axes but the last, those along the last, *cells): filled.
        fixed: (channels, *cells).
        moving: Of the same shape; 0 beyond it.
        reach: Displacements to each side, for each axis.
    """
    import torch
    from torch.nn import functional

    shape = fixed.shape[1:]
    sides = [side for one in reversed(reach) for side in (one, one)]
    wide = functional.pad(moving, sides)
    smooth = [_box(n, 3, 2).to(fixed.device) for n in shape]
    difference, block = costs.new_empty(shape), costs.new_empty(costs.shape[1:])
    for at, starts in enumerate(product(*(range(2 * one + 1) for one in reach[:-1]))):
        for last, cost in enumerate(block):
            cost.zero_()
            spot = [slice(s, s + n) for s, n in zip((*starts, last), shape, strict=True)]
            # A channel at a time: both buffers stay in the cache.
            for one, other in zip(fixed, wide[(slice(None), *spot)], strict=True):
                torch.sub(one, other, out=difference)
                cost.addcmul_(difference, difference)
        costs[at] = _through(smooth, block)


def _cheapest(costs: "Tensor", reach: tuple[int, ...], u: "Tensor", price: float) -> "Tensor":
    """Choose a displacement for each cell, where leaving a field has a price.

    Args:
        costs: (displacements along all axes but the last, those along the last, cells).
        reach: Displacements to each side, for each axis.
        u: (axes, cells), the field.
        price: Of a squared cell between the field and what is chosen.

    Returns:
        (axes, cells), whole numbers.
    """
    import torch

    cells = costs.shape[2]
    prices = []
    for one, along in zip(reach, u, strict=True):
        steps = torch.arange(-one, one + 1, device=u.device, dtype=u.dtype)
        prices.append(price * (steps[:, None] - along) ** 2)
    starts = list(product(*(range(2 * one + 1) for one in reach[:-1])))
    best, chosen = u.new_full((cells,), torch.inf), u.new_zeros(cells, dtype=torch.int64)
    block, least = torch.empty_like(costs[0]), torch.empty_like(best)
    for at, start in enumerate(starts):
        # The best along the last axis for these along the others; which, is found in the end.
        torch.add(costs[at], prices[-1], out=block)
        torch.amin(block, 0, out=least)
        for paid, step in zip(prices, start, strict=False):
            least += paid[step]
        chosen.masked_fill_(least < best, at)
        torch.minimum(best, least, out=best)
    rows = costs.gather(0, chosen.expand(1, *costs.shape[1:]))[0]
    last = (rows + prices[-1]).argmin(0)
    others = torch.tensor(starts, device=u.device)[chosen].T
    return torch.cat([others, last[None]]).to(u.dtype) - u.new_tensor(reach)[:, None]


def _optimised(
    start: "Tensor", fixed: "Tensor", moving: "Tensor", settings: ConvexAdamSettings
) -> "Tensor":
    """Improve a displacement by Adam, as the third step of `convex_adam`.

    The gradient is written out: what autograd would do for each iteration takes several times as
    long.

    Args:
        start: (axes, *cells), the parameters at first, in cells.
        fixed: (channels, *cells).
        moving: Of the same shape.
        settings: Weight, iterations, rate.

    Returns:
        (axes, *cells), the smoothed field of the last iteration.
    """
    import torch

    shape = fixed.shape[1:]
    smooth = [_box(n, 3, 3).to(fixed.device) for n in shape]
    rough = [settings.lambda_weight * one.to(fixed.device) for one in _roughness(len(start), shape)]
    likeness = _Likeness(fixed, moving, settings.as_published)
    parameters = start.clone()
    mean, squares = torch.zeros_like(start), torch.zeros_like(start)
    for iteration in range(1, settings.niter):
        u = _through(smooth, parameters)
        gradient = likeness.gradient(u)
        for axis, matrix in enumerate(rough):
            gradient += _along(matrix, u, axis + 1)
        # The filters are symmetric, beyond the edge too: each is its own transpose.
        gradient = _through(smooth, gradient)
        mean.lerp_(gradient, 1 - _FADE)
        squares.mul_(_FADE_SQUARES).addcmul_(gradient, gradient, value=1 - _FADE_SQUARES)
        scale = (squares.sqrt() / sqrt(1 - _FADE_SQUARES**iteration)).add_(_EPSILON)
        rate = settings.learning_rate / (1 - _FADE**iteration)
        parameters.addcdiv_(mean, scale, value=-rate)
    return _through(smooth, parameters)


def _roughness(axes: int, shape: Sequence[int]) -> "list[Tensor]":
    """Give, for each axis, the matrix that makes of u the gradient of its mean squared steps."""
    import torch

    matrices = []
    for n in shape:
        steps = torch.eye(n, dtype=torch.float64).diff(dim=0)
        count = axes * prod(shape) // n * (n - 1)
        matrices.append((steps.T @ steps * (2 / count)).float())
    return matrices


class _Likeness:
    """12 times the mean squared difference of features at x + u: how it changes with u."""

    def __init__(self, fixed: "Tensor", moving: "Tensor", as_published: bool) -> None:
        self._fixed = fixed.flatten(1).T.contiguous()
        self._moving = _Between(moving, as_published)
        self._factor = 2 * 12 / fixed.numel()

    def gradient(self, u: "Tensor") -> "Tensor":
        """Give the gradient, (axes, *cells), at a displacement of that shape."""
        found = u.new_empty(u.shape).flatten(1)
        for part, places in self._moving.parts(u):
            difference = self._moving.values(places).sub_(self._fixed[part])
            found[:, part] = self._moving.slopes(places, difference)
        return found.mul_(self._factor).view(u.shape)


def _sampled(values: "Tensor", u: "Tensor", as_published: bool) -> "Tensor":
    """Give (channels, *cells) at x + u, linear between cells and 0 beyond them."""
    between = _Between(values, as_published)
    found = values.new_empty(len(values), prod(u.shape[1:]))
    for part, places in between.parts(u):
        found[:, part] = between.values(places).T
    return found.view(values.shape)


@dataclass(frozen=True)
class _Places:
    """Places between cells.

    Attributes:
        first: (n,), the number of the corner before each place, along all axes.
        fractions: (axes, n), how far it is from there to the corner behind, in cells.
    """

    first: "Tensor"
    fractions: "Tensor"


class _Between:
    """Values of a grid between its cells, and how they change with the place.

    One row holds all channels of a cell, so that a corner of a place is one piece of memory; two
    rows of 0 lie beyond each edge, so that no place needs a question.
    """

    def __init__(self, values: "Tensor", as_published: bool) -> None:
        import torch
        from torch.nn import functional

        shape, device = values.shape[1:], values.device
        wide = functional.pad(values, (2, 2) * len(shape))
        self._rows = wide.flatten(1).T.contiguous()
        strides = wide[0].stride()
        self._strides = values.new_tensor(strides, dtype=torch.int32)[:, None]
        self._origin = 2 * sum(strides)
        self._sizes = values.new_tensor(shape)[:, None]
        self._corners = [
            sum(stride for stride, side in zip(strides, sides, strict=True) if side)
            for sides in product((False, True), repeat=len(shape))
        ]
        self._published = as_published
        if as_published:
            # From -1 to 1, the last axis first, as torch wants it.
            eye = torch.eye(len(shape), len(shape) + 1, device=device)[None]
            grid = functional.affine_grid(eye, [1, 1, *shape], align_corners=False)
            self._identity = grid.flatten(0, -2).T.flip(0)
        else:
            axes = [torch.arange(n, device=device, dtype=values.dtype) for n in shape]
            self._identity = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        count = min(prod(shape), _TOGETHER if device.type == "cpu" else _TOGETHER_GPU)
        self._index = self._strides.new_empty(count, len(self._corners))
        self._weights = values.new_empty(self._index.shape)
        self._bags = torch.arange(
            0, self._index.numel(), len(self._corners), device=device, dtype=torch.int32
        )
        self._buffer = values.new_empty(count, len(values))
        self._products = values.new_empty(len(self._corners), count)
        self._ones = values.new_ones(len(values))

    def parts(self, u: "Tensor") -> Iterator[tuple[slice, _Places]]:
        """Yield x + u, (axes, *cells), as many places at once as are looked up together."""
        import torch

        flat, count = u.flatten(1), len(self._index)
        for start in range(0, flat.shape[1], count):
            part = slice(start, start + count)
            at = self._places(self._identity[:, part], flat[:, part]).clamp_(min=-2)
            at = torch.minimum(at, self._sizes)
            before = at.floor()
            first = (before.int() * self._strides).sum(0, dtype=torch.int32) + self._origin
            yield part, _Places(first, at - before)

    def _places(self, identity: "Tensor", u: "Tensor") -> "Tensor":
        """Add a displacement; see `as_published`."""
        if not self._published:
            return identity + u
        # Rounded in the same steps, too: where a place is a cell's centre the slope has two
        # values, and fields that are 0 are there in many cells at once.
        moved = identity + u / ((self._sizes - 1) / 2)
        return ((moved + 1) * self._sizes - 1) / 2

    def values(self, places: _Places) -> "Tensor":
        """Give the values at places, (n, channels)."""
        import torch
        from torch.nn import functional

        n = len(places.first)
        index, weights = self._index[:n], self._weights[:n]
        for column, corner in zip(index.T, self._corners, strict=True):
            torch.add(places.first, corner, out=column)
        shares = [weights.new_ones(())]
        for behind in places.fractions[:-1]:
            shares = [share * part for share in shares for part in (1 - behind, behind)]
        behind = places.fractions[-1]
        ends = [(share, part) for share in shares for part in (1 - behind, behind)]
        for column, (share, part) in zip(weights.T, ends, strict=True):
            torch.mul(share, part, out=column)
        # One sum over corners, by weights, in one pass over the rows.
        return functional.embedding_bag(
            index.view(-1),
            self._rows,
            self._bags[:n],
            mode="sum",
            per_sample_weights=weights.view(-1),
        )

    def slopes(self, places: _Places, direction: "Tensor") -> "Tensor":
        """Say how values change with the displacement.

        Args:
            places: n of them.
            direction: (n, channels), what the values are multiplied by and summed over.

        Returns:
            (axes, n), a cell.
        """
        import torch

        n = len(places.first)
        rows, products = self._buffer[:n], self._products[:, :n]
        for corner, product_ in zip(self._corners, products, strict=True):
            torch.index_select(self._rows[corner:], 0, places.first, out=rows)
            torch.mv(rows.mul_(direction), self._ones, out=product_)
        # One axis after the other is interpolated; its own slope is a difference instead.
        axes = len(places.fractions)
        left = products.reshape(*(2,) * axes, n)
        slopes: list[Tensor] = []
        for behind in places.fractions:
            step = left[1] - left[0]
            slopes = [torch.lerp(one[0], one[1], behind) for one in slopes]
            slopes.append(step)
            left = left[0] + behind * step
        found = torch.stack(slopes)
        return found * (self._sizes / (self._sizes - 1)) if self._published else found


def _carried(u: "Tensor", way: Sequence[_Cells], as_published: bool) -> "Tensor":
    """Carry a displacement from grid to grid, linear between the centres of their cells."""
    for of, to in pairwise(way):
        matrices, ratios = [], []
        for n, before, size, after in zip(of.shape, of.spacing, to.shape, to.spacing, strict=True):
            wide = n / size if as_published else after / before
            matrices.append(_interpolation(n, size, wide))
            ratios.append(before / after)
        u = _through(matrices, u * u.new_tensor(ratios).view(-1, *(1 for _ in ratios)))
    return u


def _interpolation(n: int, size: int, ratio: float) -> "Tensor":
    """Give the (size, n) matrix from n cells to `size` that are `ratio` of such a cell wide.

    Beyond the outermost centre its value goes on.
    """
    import torch

    at = (torch.arange(size, dtype=torch.float64) + 0.5) * ratio - 0.5
    at = at.clamp(0, n - 1)
    near = 1 - (at[:, None] - torch.arange(n, dtype=torch.float64)).abs()
    return near.clamp(min=0).float()


def _box(n: int, width: int, times: int) -> "Tensor":
    """Give the (n, n) matrix of a box filter that is passed several times, beyond the edge 0."""
    import torch

    places = torch.arange(n)
    near = (places[:, None] - places).abs() <= width // 2
    passed: Tensor = torch.linalg.matrix_power(near.double() / width, times).float()
    return passed


def _through(matrices: Sequence["Tensor"], values: "Tensor") -> "Tensor":
    """Multiply by one matrix along each of the last axes."""
    for axis, matrix in enumerate(matrices, values.ndim - len(matrices)):
        values = _along(matrix.to(values.device), values, axis)
    return values


def _along(matrix: "Tensor", values: "Tensor", axis: int) -> "Tensor":
    """Multiply by a (m, n) matrix along an axis of n."""
    import torch

    if axis == values.ndim - 1:
        last: Tensor = values @ matrix.T
        return last
    lead, rest = values.shape[:axis], values.shape[axis + 1 :]
    flat = values.reshape(-1, values.shape[axis], prod(rest))
    other: Tensor = torch.matmul(matrix, flat).view(*lead, len(matrix), *rest)
    return other
