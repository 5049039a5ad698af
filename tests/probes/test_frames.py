from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from probes.metrics.cases import Case, CaseScores, evaluate_cases, measure_case
from probes.metrics.frames import challenge_iou, isinet_iou, present_iou, twoclass_iou
from probes.metrics.overlap import overlap_counts

Array = npt.NDArray[Any]
LABELS = [1, 2, 3]
NAMES = ("instrument_iou", "isinet_iou", "mc_iou", "pooled_iou")
NAMES += ("binary_iou", "pooled_binary_iou", "twoclass_iou")

FRAMES = [
    # Labels 1 (1 of 3) and 2 (1 of 3); any label 4 of 4, background 2 of 2.
    ([[1, 1, 2], [2, 0, 0]], [[1, 2, 2], [1, 0, 0]]),
    # Label 1 (2 of 2), and 3 that is not there (0 of 1); any label 2 of 3, background 3 of 4.
    ([[1, 1, 0], [0, 0, 0]], [[1, 1, 3], [0, 0, 0]]),
    # Label 2 (0 of 2), nothing predicted; background 4 of 6.
    ([[2, 2, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
    # Nothing, and nothing predicted; background 6 of 6.
    ([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
    # Nothing, though 3 is predicted (0 of 1); background 5 of 6.
    ([[0, 0, 0], [0, 0, 0]], [[0, 3, 0], [0, 0, 0]]),
]
LABEL_1, LABEL_2, LABEL_3 = [1 / 3, 1], [1 / 3, 0], [0, 0]


def measured(frames: list[tuple[list[list[int]], list[list[int]]]]) -> list[Case]:
    return [measure_case(np.array(t), np.array(p), LABELS, NAMES) for t, p in frames]


def scored() -> CaseScores:
    return evaluate_cases(measured(FRAMES), NAMES)


def test_challenge_iou_by_hand() -> None:
    """Frames with a truth: (1/3 + 1/3) / 2, 1 (label 3 does not matter), 0."""
    found = scored()
    assert found.values["instrument_iou"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    np.testing.assert_allclose(found.per_label["instrument_iou"], [2 / 3, 1 / 6, np.nan])
    np.testing.assert_array_equal(found.n_cases["instrument_iou"], [2, 2, 0])


def test_isinet_iou_by_hand() -> None:
    """Frames with anything: 1/3, (1 + 0) / 2, 0, 0."""
    assert scored().values["isinet_iou"] == pytest.approx((1 / 3 + 1 / 2 + 0 + 0) / 4)


def test_mean_class_iou_by_hand() -> None:
    found = scored()
    expected = [np.mean(LABEL_1), np.mean(LABEL_2), np.mean(LABEL_3)]
    np.testing.assert_allclose(found.per_label["mc_iou"], expected)
    assert found.values["mc_iou"] == pytest.approx(np.mean(expected))
    np.testing.assert_array_equal(found.n_cases["mc_iou"], [2, 2, 2])


def test_pooled_iou_by_hand() -> None:
    """Label 1: 1 + 2 of 3 + 2; 2: 1 + 0 of 3 + 2; 3: 0 of 1 + 1."""
    found = scored()
    np.testing.assert_allclose(found.per_label["pooled_iou"], [3 / 5, 1 / 5, 0])
    assert found.values["pooled_iou"] == pytest.approx(4 / 12)


def test_binary_iou_by_hand() -> None:
    found = scored()
    assert found.values["binary_iou"] == pytest.approx((1 + 2 / 3 + 0 + 0) / 4)
    assert found.n_cases["binary_iou"] == 4  # the frame with nothing at all is skipped
    assert found.values["pooled_binary_iou"] == pytest.approx((4 + 2) / (4 + 3 + 2 + 1))
    frames = [(1 + 1) / 2, (2 / 3 + 3 / 4) / 2, (0 + 4 / 6) / 2, 1, (0 + 5 / 6) / 2]
    assert found.values["twoclass_iou"] == pytest.approx(np.mean(frames))


def test_a_perfect_prediction() -> None:
    truth = [frame for frame, _ in FRAMES]
    found = evaluate_cases(measured(list(zip(truth, truth, strict=True))), NAMES)
    assert found.values == {name: 1.0 for name in NAMES}


def test_frame_by_frame_as_isinets_loops_have_it() -> None:
    """Loops over frames and labels that know nothing of counts."""
    draws = np.random.default_rng(0)
    pairs = []
    for _ in range(30):
        truth = draws.integers(0, 4, (7, 9)) * (draws.random((7, 9)) < draws.choice([0, 0.03, 0.5]))
        prediction = np.where(draws.random(truth.shape) < 0.9, truth, draws.integers(0, 4))
        pairs.append((truth, prediction * int(draws.random() < 0.8)))
    challenge, isinet, of_label = [], [], {label: [] for label in LABELS}
    for truth, prediction in pairs:
        ious = {}
        for label in LABELS:
            both, either = (
                (truth == label) & (prediction == label),
                (truth == label) | (prediction == label),
            )
            if either.any():
                ious[label] = both.sum() / either.sum()
                of_label[label].append(ious[label])
        if ious:
            isinet.append(np.mean(list(ious.values())))
        if (truth > 0).any():
            challenge.append(np.mean([ious[label] for label in np.unique(truth) if label]))
    found = evaluate_cases([measure_case(t, p, LABELS, NAMES) for t, p in pairs], NAMES).values
    assert 0 < len(challenge) < len(isinet) < len(pairs)
    assert found["instrument_iou"] == pytest.approx(np.mean(challenge), abs=1e-12)
    assert found["isinet_iou"] == pytest.approx(np.mean(isinet), abs=1e-12)
    assert found["mc_iou"] == pytest.approx(np.mean([np.mean(v) for v in of_label.values()]))


def test_shapes() -> None:
    counts = np.stack([overlap_counts(np.array(t), np.array(p), LABELS) for t, p in FRAMES])
    assert present_iou(counts[:, :-1]).shape == (5, 3)
    np.testing.assert_array_equal(np.isnan(challenge_iou(counts[:, :-1])), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(np.isnan(isinet_iou(counts[:, :-1])), [0, 0, 0, 1, 0])
    assert twoclass_iou(counts[:, -1]).shape == (5,)
