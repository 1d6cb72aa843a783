"""1 - exp(x) and its logarithm for x <= 0, each also with an exact derivative."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def one_minus_exp(x: Tensor) -> Tensor:
    """``1 - exp(x)`` for x <= 0, to the last digits where x is -1e-20 as well as -1e5.

    Not expm1 everywhere: its derivative is computed as result + 1, which for x far below 0 is rounded to 0.
    """
    return torch.where(x > -math.log(2), -x.expm1(), 1 - x.exp())


def log_one_minus_exp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` for x < 0, in the same range."""
    near = x > -math.log(2)
    # Each branch gets numbers it is made for: an infinite derivative times 0 would be NaN.
    return torch.where(
        near, (-torch.where(near, x, -1.0).expm1()).log(), (-torch.where(near, -1.0, x).exp()).log1p()
    )
