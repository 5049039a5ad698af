from msd import msd

MINIATURE = msd(
    "Task09_Spleen",
    "spleen_2",
    "spleen_3",
    "spleen_6",
    "spleen_8",
    "spleen_9",
    "spleen_10",
    "spleen_63",
    labels=1,
)
