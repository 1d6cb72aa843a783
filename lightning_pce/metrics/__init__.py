"""torchmetrics Metrics of token losses and of any stream of numbers."""

from lightning_pce.metrics._views import DigestView
from lightning_pce.metrics.bits_per_byte import BitsPerByte
from lightning_pce.metrics.label_totals import LabelTotals
from lightning_pce.metrics.pass_at_n import ExpectedPassAtN
from lightning_pce.metrics.percentiles import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce.metrics.proxies import TokenProxies, proxy_names
from lightning_pce.metrics.tail_tokens import Tail, TailTokens

__all__ = [
    "BitsPerByte",
    "DigestView",
    "ExpectedPassAtN",
    "LabelTotals",
    "PercentileCrossEntropy",
    "StreamingQuantiles",
    "Tail",
    "TailTokens",
    "TokenProxies",
    "proxy_names",
]
