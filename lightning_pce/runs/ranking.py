"""Which of many models, or corpora, is better: ranked by proxies from expert solutions.

:class:`ProxyTable` holds the proxies of models on tasks, which :func:`save_proxies` or ``lightning-pce
evaluate --proxies`` have written. :func:`cross_validate` says how well they rank models on tasks that they
were not fitted to, beside simpler ways and with intervals over models; :func:`fit_ranker` ranks on a new one.
:func:`decision_accuracy` says how often small runs decide between two corpora as a large one.

The idea is that of arXiv 2605.18607, which we know from descriptions: the z-scores within a task, C = 1, the
width of the RBF kernel and what "sparse" fits are our choices. Neither torch nor SciPy is needed.
"""

from lightning_pce.runs._cross_validation import cross_validate
from lightning_pce.runs._decision_accuracy import DecisionAccuracy, decision_accuracy
from lightning_pce.runs._population import TooFewError
from lightning_pce.runs._ranker import Ranker, fit_ranker
from lightning_pce.runs._ranking_report import Baseline, CrossValidation, TaskSplit
from lightning_pce.runs._resampling import Resampled
from lightning_pce.runs._signal_to_noise import signal_to_noise
from lightning_pce.runs._styles import best_style
from lightning_pce.runs.proxy_files import save_proxies
from lightning_pce.runs.proxy_table import ProxyTable

__all__ = [
    "Baseline",
    "CrossValidation",
    "DecisionAccuracy",
    "ProxyTable",
    "Ranker",
    "Resampled",
    "TaskSplit",
    "TooFewError",
    "best_style",
    "cross_validate",
    "decision_accuracy",
    "fit_ranker",
    "save_proxies",
    "signal_to_noise",
]
