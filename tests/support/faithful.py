"""What a run of a task as it stands may differ in where it is of a few made-up items."""

import re

from probes.paper_tables import paper_tables
from probes.runs import Result
from probes.standing import standing

_OF_A_MINIATURE = re.compile(
    r"random weights|the paper prints nothing of this encoder|resolution \d|\d+ of \d+ seeds"
    r"|settings |read with (tile_px|crop_size)="
    r"|[\d,]+ (items|pairs)\b.*the official release has|trained on [\d,]+ items, the official"
    r"|[\d,]+ of [\d,]+ groups$|[\d,]+ items left out$"
)


def surprises(result: Result) -> list[str]:
    """Name what the report says against a run that its size does not explain."""
    rows = [row for one in standing(paper_tables(), {"run": result}) for row in one.own]
    return [
        warning
        for row in rows
        for warning in row.warnings
        if not any(map(_OF_A_MINIATURE.match, (warning, warning.partition(": ")[2])))
    ]
