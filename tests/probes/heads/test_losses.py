import math

import numpy as np
import pytest
import torch
from torch import Tensor

from probes.heads.losses import SMOOTH, dense_loss, one_hot


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


# Of 2 x 3 pixels: the background and two classes.
P = tensor(
    [
        [[0.5, 0.25, 0.25], [0.5, 0.25, 0.125]],
        [[0.25, 0.5, 0.25], [0.25, 0.25, 0.125]],
        [[0.25, 0.25, 0.5], [0.25, 0.5, 0.75]],
    ]
)
LABELS = torch.tensor([[0, 1, 2], [1, 0, 2]], dtype=torch.uint8)


def test_softmax_by_hand() -> None:
    loss = dense_loss([(P.log()[None], one_hot(LABELS[None], 2))], overlapping=False)
    entropy = -math.log(0.5 * 0.5 * 0.5 * 0.25 * 0.25 * 0.75) / 6
    # Class 1: 0.5 + 0.25 of it is right, 1.625 is predicted, 2 are there. Class 2: 1.25, 2.5, 2.
    dice = ((1.5 + SMOOTH) / (3.625 + SMOOTH) + (2.5 + SMOOTH) / (4.5 + SMOOTH)) / 2
    assert loss.item() == pytest.approx(entropy + 1 - dice, abs=1e-6)
    assert loss.item() == pytest.approx(0.8566162 + 1 - 0.4846743, abs=1e-5)


def test_sigmoids_by_hand() -> None:
    p, masks = P[1:], torch.stack([LABELS == 1, LABELS > 0])  # the second holds the first
    loss = dense_loss([((p / (1 - p)).log()[None], masks[None])], overlapping=True)
    first = 0.75 * 0.5 * 0.75 * 0.25 * 0.75 * 0.875
    second = 0.75 * 0.25 * 0.5 * 0.25 * 0.5 * 0.75
    entropy = -math.log(first * second) / 12
    # First: 0.75 right, 1.625 predicted, 2 there. Second: 1.75 right, 2.5 predicted, 4 there.
    dice = ((1.5 + SMOOTH) / (3.625 + SMOOTH) + (3.5 + SMOOTH) / (6.5 + SMOOTH)) / 2
    assert loss.item() == pytest.approx(entropy + 1 - dice, abs=1e-6)


def test_what_nobody_has_and_nobody_predicts_is_right() -> None:
    logits = torch.full((1, 2, 2, 3), -40.0)
    logits[:, 0] = 40
    masks = one_hot(torch.zeros(1, 2, 3, dtype=torch.uint8), 1)
    assert dense_loss([(logits, masks)], overlapping=False).item() == pytest.approx(0, abs=1e-5)
    logits[:, 1] = 40.7  # 2/3 of each pixel, where nothing is
    one = dense_loss([(logits, masks)], overlapping=False).item()
    p = 1 / (1 + math.exp(-0.7))
    assert one == pytest.approx(-math.log(1 - p) + 1 - SMOOTH / (6 * p + SMOOTH), abs=1e-4)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_rows_of_other_sizes_count_by_their_pixels(dims: int, *, overlapping: bool) -> None:
    draws = np.random.default_rng(0)
    sizes = [(4, 5, 2)[:dims], (7, 3, 1)[:dims]]
    groups = []
    for n_rows, size in zip((2, 1), sizes, strict=True):
        logits = torch.from_numpy(draws.standard_normal((n_rows, 3, *size)).astype(np.float32))
        if overlapping:
            masks = torch.from_numpy(draws.random((n_rows, 3, *size)) < 0.4)
        else:
            masks = one_hot(torch.from_numpy(draws.integers(0, 3, (n_rows, *size))), 2)
        groups.append((logits, masks))
    flat = [
        torch.cat([pair[n].transpose(0, 1).reshape(1, 3, 1, -1) for pair in groups], dim=3)
        for n in (0, 1)
    ]
    together = dense_loss([(flat[0], flat[1])], overlapping=overlapping).item()
    assert dense_loss(groups, overlapping=overlapping).item() == pytest.approx(together, abs=1e-5)


def test_masks_of_labels() -> None:
    masks = one_hot(LABELS[None], 2)
    assert masks.dtype == torch.bool
    expected = np.stack([LABELS.numpy() == number for number in range(3)])[None]
    np.testing.assert_array_equal(masks.numpy(), expected)
    assert one_hot(masks, 2) is masks
    many = torch.tensor([[0, 255, 254]], dtype=torch.uint8)
    assert one_hot(many, 255).sum(1).tolist() == [[1, 1, 1]]
    assert one_hot(many, 255)[0, 255].tolist() == [False, True, False]


def test_gradients_are_those_of_the_definition() -> None:
    logits = P.log()[None].double().requires_grad_()
    masks = one_hot(LABELS[None], 2)
    assert torch.autograd.gradcheck(
        lambda one: dense_loss([(one, masks)], overlapping=False), (logits,)
    )
