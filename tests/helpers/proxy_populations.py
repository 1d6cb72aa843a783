"""Models whose proxies carry their truth, or do not."""

import numpy as np

from lightning_pce.runs.ranking import ProxyTable


def population(models=16, tasks=5, proxies=8, *, carry=1.0, noise=0.5, seed=0):
    """A table: each model has a skill, and one of its own on each task; ``text_ce`` knows neither."""
    random = np.random.default_rng(seed)
    skill = random.normal(size=(models, 1)) + 0.5 * random.normal(size=(models, tasks))
    weights = carry * np.random.default_rng(7).normal(size=proxies)
    weights[0] = -0.3 * carry  # the loss of the expert solutions, a weak one
    values = skill[..., None] * weights + noise * random.normal(size=(models, tasks, proxies))
    return ProxyTable(
        [f"m{model}" for model in range(models) for _ in range(tasks)],
        [f"t{task}" for _ in range(models) for task in range(tasks)],
        ["ce_uniform", *(f"p{proxy}" for proxy in range(1, proxies))],
        values.reshape(-1, proxies),
        errors=np.full((models * tasks, proxies), 0.1),
        truth=(1 / (1 + np.exp(-skill))).ravel(),
        baselines={"text_ce": np.repeat(random.normal(size=models), tasks)},
    )


def changed(table, **columns):
    """The table with other columns."""
    own = {
        name: getattr(table, name)
        for name in (
            "models",
            "tasks",
            "names",
            "values",
            "errors",
            "truth",
            "styles",
            "baselines",
            "best_of",
        )
    }
    return ProxyTable(**{**own, **columns})
