from msd import msd

MINIATURE = msd(
    "Task08_HepaticVessel",
    "hepaticvessel_001",
    "hepaticvessel_002",
    "hepaticvessel_004",
    "hepaticvessel_005",
    "hepaticvessel_007",
    "hepaticvessel_008",
    "hepaticvessel_455",
    labels=2,
)
