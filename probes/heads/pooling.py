"""The network of `AbmilHead` on one bag, forwards and backwards, in blocks of rows.

The projection of the rows is linear, which saves half of the arithmetic and most of the memory:

* V h_i + b_V = (V W) e_i + (V b + b_V): V W is multiplied once a bag, not W with each row;
* sum_i a_i h_i = W (sum_i a_i e_i) + b, as the a_i sum to 1.

So no h_i is ever made. What the gradient needs of a row is its values behind tanh and gate.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BRANCHES", "PARAMETERS", "BagNetwork", "EachBlock", "Pooling", "row_blocks"]

T = TypeVar("T")

Pooling = Literal["gated", "plain", "mean", "max"]
BRANCHES: Mapping[str, int] = {"gated": 2, "plain": 1, "mean": 0, "max": 0}
"""Layers of the attention, tanh and gate, of each pooling."""
PARAMETERS = (
    "projection_weight",
    "projection_bias",
    "attention_weight",
    "attention_bias",
    "score_weight",
    "class_weight",
    "class_bias",
)
"""What training moves; shapes stand in `AbmilHead`."""

EachBlock = Callable[[Callable[[slice], Any], int], Iterable[Any]]
"""Calls a function with each block of so many rows; gives the results in order."""

_BLOCK_ROWS = 1024
"""Rows of 384 features, their products and gradients take 5 MB as float32: a core's cache."""


@contextmanager
def row_blocks() -> Iterator[EachBlock]:
    """Let blocks of rows be computed side by side, in as many threads as the caller gives torch.

    Each block is computed by one thread, and what the blocks give is added in their order. So the
    result has the same bits however many threads there are, unlike that of torch's own sharing.
    The caller's number of threads and gradient mode are set back afterwards.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            ThreadPoolExecutor(threads) as workers,
        ):

            def each_block(work: Callable[[slice], T], n_rows: int) -> Iterable[T]:
                starts = range(0, n_rows, _BLOCK_ROWS)
                blocks = [slice(start, min(start + _BLOCK_ROWS, n_rows)) for start in starts]
                return workers.map(work, blocks) if len(blocks) > 1 else map(work, blocks)

            yield each_block
    finally:
        torch.set_num_threads(threads)


class BagNetwork:
    """Projection, pooling and linear classifier; see `AbmilHead` for the equations.

    Args:
        arrays: `PARAMETERS`, and `mean` and `scale` (dim,), by name.
        pooling: How the rows of a bag become one.

    Attributes:
        parameters: `PARAMETERS` as tensors, by name.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], *, pooling: Pooling) -> None:
        import torch

        self.pooling = pooling
        self.parameters = {name: torch.tensor(arrays[name]) for name in PARAMETERS}
        self._mean, self._scale = torch.tensor(arrays["mean"]), torch.tensor(arrays["scale"])

    def logits(self, bag: "Tensor", each_block: EachBlock) -> "Tensor":
        """Give (n_logits,) of a bag (n_rows, dim), without dropout."""
        import torch

        with torch.no_grad():
            weight, bias = self._projection()
            if BRANCHES[self.pooling]:
                pooled = self._attend(bag, weight, bias, each_block).pooled
                return self._classify(weight @ pooled + bias)
            return self._classify(self._embed_plainly(bag, weight, bias, each_block))

    def row_weights(self, bag: "Tensor", each_block: EachBlock) -> "Tensor":
        """Give (n_rows,) shares of the rows in the pooled one, which sum to 1.

        With "max" it is the share of dimensions of h in which a row has the maximum.
        """
        import torch

        with torch.no_grad():
            weight, bias = self._projection()
            if BRANCHES[self.pooling]:
                return self._attend(bag, weight, bias, each_block).weights
            if self.pooling == "mean":
                return torch.full((len(bag),), 1 / len(bag))
            best = _best_rows(bag, weight, each_block)
            return torch.bincount(best, minlength=len(bag)) / len(best)

    def backward(
        self,
        bag: "Tensor",
        loss_of: "Callable[[Tensor], Tensor]",
        each_block: EachBlock,
        *,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> float:
        """Add the gradient of a bag's loss to those of the parameters.

        Args:
            bag: (n_rows, dim).
            loss_of: From logits (n_logits,) to the loss.
            each_block: Of `row_blocks`.
            dropout: Share of the values of tanh and gate, each by itself, that is left out.
            seed: Of the dropout.

        Returns:
            The loss.
        """
        import torch

        weight, bias = self._projection()
        if not BRANCHES[self.pooling]:
            loss = loss_of(self._classify(self._embed_plainly(bag, weight, bias, each_block)))
            torch.autograd.backward(loss)
            return loss.item()
        attended = self._attend(bag, weight, bias, each_block, dropout=dropout, seed=seed)
        pooled = attended.pooled.requires_grad_()
        loss = loss_of(self._classify(weight @ pooled + bias))
        (towards,) = torch.autograd.grad(loss, pooled, retain_graph=True)
        torch.autograd.backward(
            [loss, attended.layer, attended.offset, self.parameters["score_weight"]],
            [None, *attended.gradients(bag, towards, each_block)],
        )
        return loss.item()

    def _projection(self) -> "tuple[Tensor, Tensor]":
        """Give weight (projection, dim) and bias for rows that are not standardised."""
        weight = self.parameters["projection_weight"] / self._scale
        return weight, self.parameters["projection_bias"] - weight @ self._mean

    def _classify(self, embedding: "Tensor") -> "Tensor":
        return self.parameters["class_weight"] @ embedding + self.parameters["class_bias"]

    def _embed_plainly(
        self, bag: "Tensor", weight: "Tensor", bias: "Tensor", each_block: EachBlock
    ) -> "Tensor":
        if self.pooling == "mean":
            sums = each_block(lambda rows: _as_floats(bag[rows], weight).sum(0), len(bag))
            return weight @ (sum(sums) / len(bag)) + bias
        best = _best_rows(bag, weight.detach(), each_block)
        return (_as_floats(bag[best], weight) * weight).sum(1) + bias

    def _attend(
        self,
        bag: "Tensor",
        weight: "Tensor",
        bias: "Tensor",
        each_block: EachBlock,
        *,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> "_Attended":
        import torch

        attention = self.parameters["attention_weight"]
        layer = attention @ weight
        offset = attention @ bias + self.parameters["attention_bias"]
        branches = _Branches(
            layer=layer.detach(),
            offset=offset.detach(),
            score=self.parameters["score_weight"].detach(),
            n_branches=BRANCHES[self.pooling],
            # Tanh and gate are left out each by itself, but only their product counts.
            kept=(1 - dropout) ** BRANCHES[self.pooling],
            seed=seed,
        )
        blocks = list(each_block(lambda rows: branches.forward(bag[rows], rows.start), len(bag)))
        peaks = torch.stack([block.peak for block in blocks])
        shares = torch.exp(peaks - peaks.max()) * torch.stack([block.total for block in blocks])
        shares /= shares.sum()
        return _Attended(
            layer=layer,
            offset=offset,
            branches=branches,
            blocks=blocks,
            weights=torch.cat([b.weights * s for b, s in zip(blocks, shares, strict=True)]),
            pooled=torch.stack([block.pooled for block in blocks], 1) @ shares,
        )


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Attention within one block of rows.

    Attributes:
        tanh: (n_rows, hidden).
        gate: (n_rows, hidden), zero where dropped.
        peak: () largest score.
        total: () sum of exp(score - peak).
        weights: (n_rows,) softmax of the scores.
        pooled: (dim,) sum of the rows by these weights.
    """

    tanh: "Tensor"
    gate: "Tensor"
    peak: "Tensor"
    total: "Tensor"
    weights: "Tensor"
    pooled: "Tensor"


@dataclass(frozen=True, kw_only=True)
class _Branches:
    """Scores of rows, and their gradient.

    Attributes:
        layer: (n_branches * hidden, dim), tanh above gate.
        offset: (n_branches * hidden,).
        score: (hidden,).
        n_branches: 2 with the gate, 1 without.
        kept: Share of the products of tanh and gate that is not dropped.
        seed: Of the dropout.
    """

    layer: "Tensor"
    offset: "Tensor"
    score: "Tensor"
    n_branches: int
    kept: float
    seed: int

    def forward(self, rows: "Tensor", start: int) -> _Block:
        """Attend within rows (n_rows, dim), of which `start` is the first one's number."""
        import torch

        features = _as_floats(rows, self.layer)
        values = torch.addmm(self.offset, features, self.layer.T)
        hidden = len(self.score)
        tanh = values[:, :hidden].tanh_()
        gate = values[:, hidden:].sigmoid_() if self.n_branches == 2 else torch.ones_like(tanh)
        if self.kept < 1:
            draws = np.random.default_rng([self.seed, start])
            dropped = draws.random(gate.shape, dtype=np.float32) >= self.kept
            gate.masked_fill_(torch.from_numpy(dropped), 0)
        scores = (tanh * gate) @ (self.score / self.kept)
        peak = scores.max()
        weights = torch.exp(scores - peak)
        total = weights.sum()
        weights /= total
        return _Block(
            tanh=tanh,
            gate=gate,
            peak=peak,
            total=total,
            weights=weights,
            pooled=weights @ features,
        )

    def gradients(
        self, rows: "Tensor", block: _Block, weights: "Tensor", towards: "Tensor", level: "Tensor"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Give what some rows add to the gradients of layer, offset and score.

        With z = sum_i a_i e_i and a = softmax(s): dL/ds_i = a_i (e_i . dL/dz - z . dL/dz).

        Args:
            rows: (n_rows, dim).
            block: Of the forward pass.
            weights: (n_rows,) a_i, softmax over the whole bag.
            towards: (dim,) dL/dz.
            level: () z . dL/dz.

        Returns:
            As `layer`, `offset` and `score`.
        """
        import torch

        features = _as_floats(rows, self.layer)
        by_score = weights * (features @ towards - level) / self.kept
        product = block.tanh * block.gate
        by_product = torch.outer(by_score, self.score)
        by_tanh = by_product * block.gate * (1 - block.tanh.square())
        by_value = [by_tanh, by_product * product * (1 - block.gate)][: self.n_branches]
        by_layer = torch.cat(by_value, 1)
        return by_layer.T @ features, by_layer.sum(0), by_score @ product


@dataclass(frozen=True, kw_only=True)
class _Attended:
    """A bag under attention.

    Attributes:
        layer: (n_branches * hidden, dim), part of the graph, as is `offset`.
        offset: (n_branches * hidden,).
        branches: Who scored.
        blocks: What they left.
        weights: (n_rows,) a_i.
        pooled: (dim,) sum_i a_i e_i.
    """

    layer: "Tensor"
    offset: "Tensor"
    branches: _Branches
    blocks: list[_Block]
    weights: "Tensor"
    pooled: "Tensor"

    def gradients(
        self, bag: "Tensor", towards: "Tensor", each_block: EachBlock
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Give the gradients of layer, offset and score, where `towards` is that of `pooled`."""
        level = self.pooled.detach() @ towards

        def of_block(rows: slice) -> "tuple[Tensor, Tensor, Tensor]":
            block = self.blocks[rows.start // _BLOCK_ROWS]
            return self.branches.gradients(bag[rows], block, self.weights[rows], towards, level)

        parts = iter(each_block(of_block, len(bag)))
        by_layer, by_offset, by_score = next(parts)
        for part in parts:
            by_layer += part[0]
            by_offset += part[1]
            by_score += part[2]
        return by_layer, by_offset, by_score


def _best_rows(bag: "Tensor", weight: "Tensor", each_block: EachBlock) -> "Tensor":
    """Give, for each dimension of h, the first row with its maximum, (projection,) int64."""
    import torch

    def best(rows: slice) -> "tuple[Tensor, Tensor]":
        highest, row = (_as_floats(bag[rows], weight) @ weight.T).max(0)
        return highest, row + rows.start

    blocks = list(each_block(best, len(bag)))
    winner = torch.stack([highest for highest, _ in blocks]).argmax(0)
    return torch.stack([row for _, row in blocks]).gather(0, winner[None])[0]


def _as_floats(rows: "Tensor", like: "Tensor") -> "Tensor":
    """Copy rows in the type of the parameters.

    Also where they have it already: the last bits of a product depend on how its factors lie in
    memory, and copies all lie alike.
    """
    return rows.to(like.dtype, copy=True)
