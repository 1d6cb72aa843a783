"""Losses to train on that reshape the cross-entropy, each a function of log-probabilities and a module.

All take what :func:`lightning_pce.token_log_prob` or another primitive gives, ``weights`` of tokens and the
``normalizer`` that their sum is divided by, and return a 0-d loss. ``_objective`` holds what they share.
"""

from lightning_pce.objectives._dco import DCO, dco
from lightning_pce.objectives._nll import NLL, nll
from lightning_pce.objectives._objective import TokenObjective
from lightning_pce.objectives._power import Power, power
from lightning_pce.objectives._suffix_weights import SuffixWeights, suffix_weights
from lightning_pce.objectives._threshold import Threshold, threshold
from lightning_pce.objectives._unlikelihood import Unlikelihood, unlikelihood
from lightning_pce.objectives._z_loss import z_loss
from lightning_pce.objectives.topk import (
    StoredTopK,
    TeacherRest,
    distillation,
    store_topk,
    teacher_rest,
    topk_distillation,
)

__all__ = [
    "DCO",
    "NLL",
    "Power",
    "StoredTopK",
    "SuffixWeights",
    "TeacherRest",
    "Threshold",
    "TokenObjective",
    "Unlikelihood",
    "dco",
    "distillation",
    "nll",
    "power",
    "store_topk",
    "suffix_weights",
    "teacher_rest",
    "threshold",
    "topk_distillation",
    "unlikelihood",
    "z_loss",
]
