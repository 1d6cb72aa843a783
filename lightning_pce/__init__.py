"""Percentiles of per-token cross-entropy for PyTorch Lightning and torchmetrics."""

from lightning_pce._version import __version__
from lightning_pce.bits_per_byte import BitsPerByte
from lightning_pce.digest_metric import DigestView
from lightning_pce.metrics import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce.mixin import PercentileCEMixin
from lightning_pce.proxies import TokenProxies, proxy_names

__all__ = [
    "BitsPerByte",
    "DigestView",
    "PercentileCEMixin",
    "PercentileCrossEntropy",
    "StreamingQuantiles",
    "TokenProxies",
    "__version__",
    "proxy_names",
]
