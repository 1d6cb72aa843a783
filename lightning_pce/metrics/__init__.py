"""torchmetrics Metrics of token losses and of any stream of numbers."""

from lightning_pce.metrics._views import DigestView
from lightning_pce.metrics.bits_per_byte import BitsPerByte
from lightning_pce.metrics.percentiles import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce.metrics.proxies import TokenProxies, proxy_names

__all__ = [
    "BitsPerByte",
    "DigestView",
    "PercentileCrossEntropy",
    "StreamingQuantiles",
    "TokenProxies",
    "proxy_names",
]
