from msd import msd

MINIATURE = msd(
    "Task07_Pancreas",
    "pancreas_001",
    "pancreas_004",
    "pancreas_005",
    "pancreas_006",
    "pancreas_010",
    "pancreas_012",
    "pancreas_421",
    labels=2,
)
