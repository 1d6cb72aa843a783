"""Percentiles of per-token cross-entropy for PyTorch Lightning and torchmetrics."""

from lightning_pce._version import __version__
from lightning_pce.bits_per_byte import BitsPerByte
from lightning_pce.callback import PercentileCECallback
from lightning_pce.checkpoints import percentile_checkpoints
from lightning_pce.digest_metric import DigestView
from lightning_pce.figures import PercentileFigures
from lightning_pce.linear_token_stats import linear_token_statistics
from lightning_pce.metrics import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce.mixin import PercentileCEMixin
from lightning_pce.proxies import TokenProxies, proxy_names
from lightning_pce.token_stats import TokenStatistics, token_statistics

__all__ = [
    "BitsPerByte",
    "DigestView",
    "PercentileCECallback",
    "PercentileCEMixin",
    "PercentileCrossEntropy",
    "PercentileFigures",
    "StreamingQuantiles",
    "TokenProxies",
    "TokenStatistics",
    "__version__",
    "linear_token_statistics",
    "percentile_checkpoints",
    "proxy_names",
    "token_statistics",
]
