"""How a network is read: its bonds as latent spaces, their gauges, spectra, features and edits."""

from bondwise.read.bonds import Bond, bond, bonds, part
from bondwise.read.contributions import added, contributions, dropped, gram, readout, values
from bondwise.read.edits import (
    Edit,
    attach,
    edited,
    generated,
    mean,
    patch,
    recorded,
    resample,
    scale,
    steer,
    zero,
)
from bondwise.read.features import Features, features, input_moments
from bondwise.read.gauge import Gauge, gauge
from bondwise.read.importance import Importance, agreement, importance

__all__ = [
    "Bond",
    "Edit",
    "Features",
    "Gauge",
    "Importance",
    "added",
    "agreement",
    "attach",
    "bond",
    "bonds",
    "contributions",
    "dropped",
    "edited",
    "features",
    "gauge",
    "generated",
    "gram",
    "importance",
    "input_moments",
    "mean",
    "part",
    "patch",
    "readout",
    "recorded",
    "resample",
    "scale",
    "steer",
    "values",
    "zero",
]
