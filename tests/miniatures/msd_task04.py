from msd import msd

MINIATURE = msd(
    "Task04_Hippocampus",
    "hippocampus_001",
    "hippocampus_003",
    "hippocampus_004",
    "hippocampus_006",
    "hippocampus_007",
    "hippocampus_008",
    "hippocampus_304",
    labels=2,
)
