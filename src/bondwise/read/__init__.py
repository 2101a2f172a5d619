"""How a network is read: its bonds as latent spaces, their gauges, spectra, features and edits."""

from bondwise.read.bonds import Bond, bond, bonds, part
from bondwise.read.contributions import added, contributions, dropped, gram, readout, values
from bondwise.read.directions import overlap
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
from bondwise.read.held_out import auroc, best_index
from bondwise.read.importance import Importance, agreement, importance
from bondwise.read.scores import Score, against_gauges, scored, selectivity, token_entropy
from bondwise.read.spectra import Spectrum, spectra

__all__ = [
    "Bond",
    "Edit",
    "Features",
    "Gauge",
    "Importance",
    "Score",
    "Spectrum",
    "added",
    "against_gauges",
    "agreement",
    "attach",
    "auroc",
    "best_index",
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
    "overlap",
    "part",
    "patch",
    "readout",
    "recorded",
    "resample",
    "scale",
    "scored",
    "selectivity",
    "spectra",
    "steer",
    "token_entropy",
    "values",
    "zero",
]
