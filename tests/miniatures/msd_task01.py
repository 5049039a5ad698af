from msd import msd

MINIATURE = msd(
    "Task01_BrainTumour",
    "BRATS_001",
    "BRATS_002",
    "BRATS_004",
    "BRATS_306",
    "BRATS_401",
    "BRATS_484",
    "BRATS_457",
    labels=3,
    channels=4,
)
