"""Reconstruction: what stays of a layer takes over the work of what goes. Linear algebra on arrays, no models."""

from __future__ import annotations

from graphprune.reconstruct.confirm import choose_strength, repair
from graphprune.reconstruct.folding import Folding, combinations, fold, produced, relu_moments, taken_over
from graphprune.reconstruct.obs import DAMPING, Curve, Quadratic, as_one, curve, scores
from graphprune.reconstruct.removal import Blocks
from graphprune.reconstruct.ridge import (
    FEW_ROWS,
    LAMS,
    Moments,
    Refit,
    mean_replacement,
    refit,
    refit_asymmetric,
    refitted,
    unchanged,
)
from graphprune.reconstruct.swaps import Swapped, swaps

__all__ = [
    "DAMPING",
    "FEW_ROWS",
    "LAMS",
    "Blocks",
    "Curve",
    "Folding",
    "Moments",
    "Quadratic",
    "Refit",
    "Swapped",
    "as_one",
    "choose_strength",
    "combinations",
    "curve",
    "fold",
    "mean_replacement",
    "produced",
    "refit",
    "refit_asymmetric",
    "refitted",
    "relu_moments",
    "repair",
    "scores",
    "swaps",
    "taken_over",
    "unchanged",
]
