from msd import msd

MINIATURE = msd(
    "Task03_Liver",
    "liver_0",
    "liver_1",
    "liver_2",
    "liver_10",
    "liver_11",
    "liver_100",
    "liver_130",
    labels=2,
)
