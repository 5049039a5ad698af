from msd import msd

MINIATURE = msd(
    "Task05_Prostate",
    "prostate_00",
    "prostate_01",
    "prostate_02",
    "prostate_04",
    "prostate_06",
    "prostate_07",
    "prostate_47",
    labels=2,
    channels=2,
)
