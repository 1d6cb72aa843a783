"""What a person looks at. Needs matplotlib (``plot``); each figure is its own, no global state knows it.

Of a history of validations: :func:`decision`, :func:`difference`, :func:`concordance` and :func:`intervals`.
These draw by the functions of plain numbers :func:`decision_chart`, :func:`difference_curve`,
:func:`concordance_map` and :func:`interval_chart`, beside which there are :func:`fan_chart`,
:func:`forecast_band` and, of digests, :func:`quantile_curve`. Of a table of proxies:
:func:`proxy_scatter`. Names are drawn as they are written.
"""

from lightning_pce.reports._drawing import new_axes
from lightning_pce.reports.difference_curves import difference_curve
from lightning_pce.reports.fan_charts import decision_chart, fan_chart
from lightning_pce.reports.forecast_charts import forecast_band
from lightning_pce.reports.history_charts import concordance, decision, difference, intervals
from lightning_pce.reports.proxy_charts import proxy_scatter
from lightning_pce.reports.quantile_curves import quantile_curve
from lightning_pce.reports.record_charts import concordance_map, interval_chart, kendall_tau_b

__all__ = [
    "concordance",
    "concordance_map",
    "decision",
    "decision_chart",
    "difference",
    "difference_curve",
    "fan_chart",
    "forecast_band",
    "interval_chart",
    "intervals",
    "kendall_tau_b",
    "new_axes",
    "proxy_scatter",
    "quantile_curve",
]
