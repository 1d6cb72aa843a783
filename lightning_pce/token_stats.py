"""Kept as an import path: see :mod:`lightning_pce.tokens.statistics`."""

from lightning_pce.tokens.statistics import STATISTICS, TokenStatistics, token_cross_entropy, token_statistics

__all__ = ["STATISTICS", "TokenStatistics", "token_cross_entropy", "token_statistics"]
