from msd import msd

MINIATURE = msd(
    "Task06_Lung",
    "lung_001",
    "lung_003",
    "lung_004",
    "lung_005",
    "lung_006",
    "lung_009",
    "lung_096",
    labels=1,
)
