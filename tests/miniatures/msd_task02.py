from msd import msd

MINIATURE = msd(
    "Task02_Heart", "la_003", "la_004", "la_005", "la_007", "la_009", "la_010", "la_014", labels=1
)
