"""Neurons of EM volumes: affinities from labels, and neurons from affinities.

Arrays in, arrays out. Volumes are (Z, Y, X); affinities are (3, Z, Y, X), in the order z, y, x,
each between a voxel and the one before it along that axis. The steps in their order:

- `widened`, `affinities`: what a head is trained to predict; `affinity_weights`, `weighted_mse`:
  how it is judged while it trains.
- `fragments`, `agglomerate`: what a head predicted, cut into pieces too small, then joined;
  `choose_threshold`: how far.
- `write_instances`: files that other programs open.
"""

from probes.neurons.agglomeration import (
    ThresholdChoice,
    agglomerate,
    choose_threshold,
    fragments,
)
from probes.neurons.files import write_instances
from probes.neurons.targets import affinities, affinity_weights, weighted_mse, widened

__all__ = [
    "ThresholdChoice",
    "affinities",
    "affinity_weights",
    "agglomerate",
    "choose_threshold",
    "fragments",
    "weighted_mse",
    "widened",
    "write_instances",
]
