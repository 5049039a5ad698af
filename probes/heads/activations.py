"""From logits to scores."""

import numpy as np
import numpy.typing as npt

__all__ = ["sigmoid", "softmax"]


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return 1 / (1 + exp(-logits)), each on its own, in the shape and dtype of ``logits``."""
    # Through the logarithm: no overflow, and small scores keep their order, where
    # (1 + tanh) / 2 would round all below 6e-8 to a tie.
    scores: npt.NDArray[np.float32] = np.exp(-np.logaddexp(np.float32(0), -logits))
    return scores


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the softmax of each row of ``logits`` (n_items, n_outputs), in their dtype."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: npt.NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores
