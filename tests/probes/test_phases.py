from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.metrics.classification import evaluate
from probes.metrics.names import known_metrics

Array = npt.NDArray[Any]
BASES = ("accuracy", "precision", "recall", "jaccard")
NAMES = [f"{mode}_{base}" for mode in ("video", "relaxed") for base in BASES]
N_PHASES = 5


def one_hot(phases: Array) -> Array:
    return np.eye(N_PHASES)[phases]


def random_videos(seed: int) -> tuple[Array, Array, Array]:
    """Truth in runs, decisions near it, and the video of each frame; phase 4 never occurs."""
    draws = np.random.default_rng(seed)
    truth, decided, videos = [], [], []
    for number, name in enumerate(("v2", "v10", "v1")):
        runs = draws.integers(1, 30, size=6 - number)
        phases = np.repeat(draws.integers(N_PHASES - 1, size=len(runs)), runs)
        shift = draws.integers(-1, 2, size=len(phases)) * (draws.random(len(phases)) < 0.5)
        truth.append(phases)
        decided.append(np.clip(phases + shift, 0, N_PHASES - 1))
        videos += [name] * len(phases)
    return np.concatenate(truth), np.concatenate(decided), np.array(videos)


def transcribed(
    truth: Array, decided: Array, videos: Array, times: dict[str, int], border: int
) -> dict[str, Any]:
    """The text of METHODS, frame by frame; a video counts as often as it was drawn."""
    accuracies, of_phase = [], {p: {base: [] for base in BASES[1:]} for p in range(N_PHASES)}
    for video, count in times.items():
        rows = np.flatnonzero(videos == video)
        right = []
        for place, row in enumerate(rows):
            start = place
            while start > 0 and truth[rows[start - 1]] == truth[row]:
                start -= 1
            end = place
            while end + 1 < len(rows) and truth[rows[end + 1]] == truth[row]:
                end += 1
            difference = decided[row] - truth[row]
            early = difference == -1 and place - start < border
            late = difference == 1 and end - place < border
            right.append(difference == 0 or early or late)
        accuracies += [np.mean(right)] * count
        for phase in set(truth[rows].tolist()):
            called = {i for i, row in enumerate(rows) if decided[row] == phase}
            given_ = {i for i, row in enumerate(rows) if truth[row] == phase}
            hits = sum(right[i] for i in called | given_)
            wholes = {"precision": called, "recall": given_, "jaccard": called | given_}
            for base, whole in wholes.items():
                value = min(hits / len(whole), 1) if whole else 0
                of_phase[phase][base] += [value] * count
    phases = sorted(set(truth.tolist()))
    return {"accuracy": np.mean(accuracies)} | {
        base: np.mean([np.mean(of_phase[p][base]) for p in phases]) for base in BASES[1:]
    }


@given(seed=st.integers(0, 10_000), fps=st.sampled_from([1.0, 0.5]))
@settings(max_examples=25, deadline=None)
def test_values_follow_the_text(seed: int, fps: float) -> None:
    truth, decided, videos = random_videos(seed)
    times = {"v2": 1, "v10": 2, "v1": 3}
    weights = np.array([times[video] for video in videos])
    found = evaluate(
        one_hot(truth),
        one_hot(decided),
        "multiclass",
        weights=np.stack([np.ones(len(truth)), weights]),
        metrics=NAMES,
        sequences=videos,
        fps=fps,
    )
    for replicate, counts in enumerate((dict.fromkeys(times, 1), times)):
        for mode, border in (("video", 0), ("relaxed", round(10 * fps))):
            expected = transcribed(truth, decided, videos, counts, border)
            for base in BASES:
                value = found.overall[f"{mode}_{base}"][replicate]
                assert value == pytest.approx(expected[base], abs=1e-12)


def test_two_videos_by_hand() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2])
    decided = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 3, 1, 0, 0, 0])
    videos = np.repeat([7, 3], [10, 4])
    found = evaluate(
        one_hot(truth), one_hot(decided), "multiclass", metrics=NAMES, sequences=videos, fps=0.2
    )
    assert found.overall["video_accuracy"] == pytest.approx((7 / 10 + 1 / 4) / 2)
    assert found.overall["relaxed_accuracy"] == pytest.approx((8 / 10 + 2 / 4) / 2)
    # phase 0 is in one video, phase 1 in both, phase 2 in one and never called; 3 and 4 in none
    expected = {
        "video_precision": [3 / 4, (4 / 5 + 1 / 1) / 2, 0],
        "video_recall": [3 / 4, (4 / 6 + 1 / 2) / 2, 0],
        "video_jaccard": [3 / 5, (4 / 7 + 1 / 2) / 2, 0],
        # borders of 2 frames: frame 3 and frame 11 are right too
        "relaxed_precision": [4 / 4, (5 / 5 + 1) / 2, 0],
        "relaxed_recall": [4 / 4, (5 / 6 + 2 / 2) / 2, 0],
        "relaxed_jaccard": [4 / 5, (5 / 7 + 2 / 2) / 2, 0],
    }
    for metric, values in expected.items():
        np.testing.assert_allclose(found.per_class[metric], [*values, np.nan, np.nan])
        assert found.overall[metric] == pytest.approx(np.mean(values))
    assert set(found.per_class) == set(expected)


def test_frames_of_a_video_need_not_stand_together() -> None:
    truth, decided, videos = random_videos(1)
    # frame by frame from each video in turn
    turn = np.concatenate([np.arange((videos == name).sum()) for name in ("v2", "v10", "v1")])
    order = np.argsort(turn, kind="stable")
    together, apart = (
        evaluate(
            one_hot(truth[rows]),
            one_hot(decided[rows]),
            "multiclass",
            metrics=NAMES,
            sequences=videos[rows],
        )
        for rows in (np.arange(len(truth)), order)
    )
    for metric in NAMES:
        assert apart.overall[metric] == pytest.approx(together.overall[metric], abs=1e-12)


def test_without_a_border_relaxed_is_not() -> None:
    truth, decided, videos = random_videos(2)
    found = evaluate(
        one_hot(truth), one_hot(decided), "multiclass", metrics=NAMES, sequences=videos, fps=0.01
    )
    for base in BASES:
        assert found.overall[f"relaxed_{base}"] == found.overall[f"video_{base}"]


def test_a_replicate_that_lost_all_videos_with_a_phase_says_nothing_about_it() -> None:
    truth, decided = np.array([0, 0, 1, 0, 0]), np.array([0, 1, 1, 0, 0])
    found = evaluate(
        one_hot(truth),
        one_hot(decided),
        "multiclass",
        weights=np.array([[1, 1, 1, 1, 1], [0, 0, 0, 2, 2]]),
        metrics=NAMES,
        sequences=["a", "a", "a", "b", "b"],
    )
    for base in BASES[1:]:
        np.testing.assert_array_equal(np.isnan(found.overall[f"video_{base}"]), [False, True])
        np.testing.assert_array_equal(
            np.isnan(found.per_class[f"video_{base}"]),
            [[False, False, True, True, True], [False, True, True, True, True]],
        )
    np.testing.assert_allclose(found.overall["video_accuracy"], [(2 / 3 + 1) / 2, 1])


def test_beside_metrics_over_frames() -> None:
    truth, decided, videos = random_videos(4)
    names = known_metrics("multiclass")
    scores = (one_hot(decided) + 0.1) / (1 + 0.1 * N_PHASES)
    found = evaluate(one_hot(truth), scores, "multiclass", metrics=names, sequences=videos)
    assert list(found.overall) == list(names)
    assert found.auc_skipped == (4,)


@pytest.mark.parametrize(
    ("sequences", "weights", "message"),
    [
        pytest.param(None, None, "'video_recall' needs sequences", id="missing"),
        pytest.param([1, 1, 1], None, r"must be \(4,\) like the items, got \(3,\)", id="length"),
        pytest.param([1, 1, np.nan, 2], None, "row 2 has nan", id="nan"),
        pytest.param([1, 1, 2, 2], [1, 2, 1, 1], "draw whole videos", id="weights"),
    ],
)
def test_sequences_that_cannot_be_used(
    sequences: list[float] | None, weights: list[int] | None, message: str
) -> None:
    phases = one_hot(np.array([0, 1, 1, 2]))
    with pytest.raises(ValueError, match=message):
        evaluate(
            phases,
            phases,
            "multiclass",
            metrics=["video_recall"],
            sequences=sequences,
            weights=None if weights is None else np.array(weights),
        )
