from msd import msd

MINIATURE = msd(
    "Task10_Colon",
    "colon_001",
    "colon_005",
    "colon_006",
    "colon_007",
    "colon_008",
    "colon_009",
    "colon_221",
    labels=1,
)
