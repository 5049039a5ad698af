"""How sure a number is, and a difference: groups are drawn, swapped or clustered, never items."""

from probes.stats.bootstrap import Difference, Interval, interval, paired_bootstrap
from probes.stats.delong import Auc, AucDifference, delong, delong_test
from probes.stats.groups import group_bootstrap_weights, group_draws, group_swaps
from probes.stats.significance import holm, permutation_p_value

__all__ = [
    "Auc",
    "AucDifference",
    "Difference",
    "Interval",
    "delong",
    "delong_test",
    "group_bootstrap_weights",
    "group_draws",
    "group_swaps",
    "holm",
    "interval",
    "paired_bootstrap",
    "permutation_p_value",
]
