"""What a person looks at. Needs matplotlib (``plot``); each figure is its own, no global state knows it.

Of one record, or of several: :func:`quantile_curve`. Of two: :func:`difference_curve`. Of a run:
:func:`fan_chart`, :func:`decision_chart`, :func:`interval_chart`, :func:`concordance_map`. Names are drawn as
they are written.
"""

from lightning_pce.reports._drawing import new_axes
from lightning_pce.reports.difference_curves import difference_curve
from lightning_pce.reports.fan_charts import decision_chart, fan_chart
from lightning_pce.reports.quantile_curves import quantile_curve
from lightning_pce.reports.record_charts import concordance_map, interval_chart, kendall_tau_b

__all__ = [
    "concordance_map",
    "decision_chart",
    "difference_curve",
    "fan_chart",
    "interval_chart",
    "kendall_tau_b",
    "new_axes",
    "quantile_curve",
]
