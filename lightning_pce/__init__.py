"""Percentiles of per-token cross-entropy for PyTorch Lightning and torchmetrics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_pce._version import __version__

if TYPE_CHECKING:
    from lightning_pce._errors import UserError
    from lightning_pce.integrations.lightning.callback import PercentileCECallback
    from lightning_pce.integrations.lightning.checkpoints import percentile_checkpoints
    from lightning_pce.integrations.lightning.figures import PercentileFigures
    from lightning_pce.integrations.lightning.history_writer import PercentileHistory
    from lightning_pce.integrations.lightning.mixin import PercentileCEMixin
    from lightning_pce.metrics._views import DigestView
    from lightning_pce.metrics.bits_per_byte import BitsPerByte
    from lightning_pce.metrics.label_totals import LabelTotals
    from lightning_pce.metrics.pass_at_n import ExpectedPassAtN
    from lightning_pce.metrics.percentiles import PercentileCrossEntropy, StreamingQuantiles
    from lightning_pce.metrics.proxies import TokenProxies, proxy_names
    from lightning_pce.metrics.tail_tokens import Tail, TailTokens
    from lightning_pce.objectives.topk import distillation, store_topk, teacher_rest, topk_distillation
    from lightning_pce.runs.history import History
    from lightning_pce.tokens.from_hidden_states import linear_token_statistics
    from lightning_pce.tokens.linear_log_prob import linear_token_log_prob
    from lightning_pce.tokens.log_prob import TokenLogProb, token_log_prob
    from lightning_pce.tokens.statistics import TokenStatistics, token_statistics
    from lightning_pce.tokens.topk_log_prob import TopKLogProb, topk_log_prob

__all__ = [
    "BitsPerByte",
    "DigestView",
    "ExpectedPassAtN",
    "History",
    "LabelTotals",
    "PercentileCECallback",
    "PercentileCEMixin",
    "PercentileCrossEntropy",
    "PercentileFigures",
    "PercentileHistory",
    "StreamingQuantiles",
    "Tail",
    "TailTokens",
    "TokenLogProb",
    "TokenProxies",
    "TokenStatistics",
    "TopKLogProb",
    "UserError",
    "__version__",
    "distillation",
    "linear_token_log_prob",
    "linear_token_statistics",
    "percentile_checkpoints",
    "proxy_names",
    "store_topk",
    "teacher_rest",
    "token_log_prob",
    "token_statistics",
    "topk_distillation",
    "topk_log_prob",
]

# Loaded when first asked for: token_statistics needs no torchmetrics, and a metric no Lightning.
_HOMES = {
    "BitsPerByte": "metrics.bits_per_byte",
    "DigestView": "metrics._views",
    "ExpectedPassAtN": "metrics.pass_at_n",
    "History": "runs.history",
    "LabelTotals": "metrics.label_totals",
    "PercentileCECallback": "integrations.lightning.callback",
    "PercentileCEMixin": "integrations.lightning.mixin",
    "PercentileCrossEntropy": "metrics.percentiles",
    "PercentileFigures": "integrations.lightning.figures",
    "PercentileHistory": "integrations.lightning.history_writer",
    "StreamingQuantiles": "metrics.percentiles",
    "Tail": "metrics.tail_tokens",
    "TailTokens": "metrics.tail_tokens",
    "TokenLogProb": "tokens.log_prob",
    "TokenProxies": "metrics.proxies",
    "TokenStatistics": "tokens.statistics",
    "TopKLogProb": "tokens.topk_log_prob",
    "UserError": "_errors",
    "distillation": "objectives.topk",
    "linear_token_log_prob": "tokens.linear_log_prob",
    "linear_token_statistics": "tokens.from_hidden_states",
    "percentile_checkpoints": "integrations.lightning.checkpoints",
    "proxy_names": "metrics.proxies",
    "store_topk": "objectives.topk",
    "teacher_rest": "objectives.topk",
    "token_log_prob": "tokens.log_prob",
    "token_statistics": "tokens.statistics",
    "topk_distillation": "objectives.topk",
    "topk_log_prob": "tokens.topk_log_prob",
}
_MODULES = (
    "checkpoints",
    "digest",
    "exchange",
    "figures",
    "integrations",
    "intervals",
    "metrics",
    "objectives",
    "plot",
    "reports",
    "runs",
    "token_stats",
    "tokens",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
