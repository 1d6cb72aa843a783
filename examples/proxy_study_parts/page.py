"""The results as tables and sentences, which stand in docs/proxies.md between two comments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from proxy_study_parts.population import SCALES

BEGIN, END = "<!-- proxy study: begin -->", "<!-- proxy study: end -->"
PROTOCOLS = {"tasks": "same models", "models_and_tasks": "new models"}
ORDERS = ("text CE", "expert CE", "expert CE, best style")


def with_section(page: str, result: dict[str, Any]) -> str:
    """The page with the section of these results between the two comments."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"The page lacks {BEGIN} or {END}.")
    return f"{before}{BEGIN}\n\n{section(result)}\n{END}{after}"


def write_section(path: Path, result: dict[str, Any]) -> None:
    page = with_section(path.read_text(encoding="utf-8"), result)
    path.write_text(page, encoding="utf-8", newline="\n")


def section(result: dict[str, Any]) -> str:
    parts = (_made_of, _ranking, _tasks, _style, _choosing, _forecasting, _stopping)
    return "\n".join(part(result) for part in parts)


def _made_of(result: dict[str, Any]) -> str:
    models = result["models"].values()
    sizes = [model["parameters"] for model in models]
    means = sorted(model["mean accuracy"] for model in models)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"""\
Seed {result["seed"]}; {len(sizes)} models of {min(sizes):,} to {max(sizes):,} parameters, whose mean
accuracies are {means[0]:.2f} to {means[-1]:.2f}; {result["cpu seconds"]:,.0f} CPU seconds of training and
measuring, small models and runs included ({versions}).
"""


def _ranking(result: dict[str, Any]) -> str:
    found = result["ranking"]
    order = sorted(found["tasks"], key=lambda name: found["tasks"][name]["rho"][0])
    rows = [
        [
            name,
            *_rho_cells(found["tasks"][name], "rho", "less text CE", "less known tasks"),
            *_rho_cells(found["models_and_tasks"].get(name, {}), "rho", "less text CE"),
        ]
        for name in order
    ]
    heads = ["", "same models", "less text CE", "less known tasks", "new models", "less text CE"]
    nulls = "; ".join(
        f"{name} {_two(found[protocol]['RankSVM, linear']['null'])} (linear) and "
        f"{_two(found[protocol]['RankSVM, RBF']['null'])} (RBF)"
        for protocol, name in PROTOCOLS.items()
    )
    spread = _two(found["tasks"]["RankSVM, linear"]["spread"])
    return f"""\
### Which model is better at a new task?

Mean Spearman's rho on tasks held out, with 90 % intervals over models; differences are paired.

{_table(heads, rows)}
When models exchange their truth RankSVM gives: {nulls}.
The spread of the linear one over the splits, {spread}, is no error bar.
"""


def _rho_cells(row: dict[str, Any], *names: str) -> list[str]:
    return [_interval(row[name]) if name in row else "" for name in names]


def _tasks(result: dict[str, Any]) -> str:
    rows = [
        [task, *map(_two, each["truth"]), _two(each["noise"]), *(_two(each[name]) for name in ORDERS)]
        for task, each in result["by task"].items()
    ]
    heads = ["task", "lowest accuracy", "median", "highest", "noise", *(f"rho of {name}" for name in ORDERS)]
    return f"""\
### By task

Noise is the share of the variance of the accuracies that 150 items alone would make.

{_table(heads, rows)}"""


def _style(result: dict[str, Any]) -> str:
    each = result["style"]
    shares = ", ".join(
        f"{style.replace('_', ' ')} {_two(each['likeliest'][style])} ({_two(each['in training'][style])})"
        for style in each["likeliest"]
    )
    return f"""\
### One expert's style

Expert CE in one style ranks at {_two(each["rho among them"])} among the {each["models of this style"]} models
whose training data has more of this style than of others, and at {_two(each["rho among others"])} among the
others. Over all styles and tasks its correlation with the share of the style in a model's training data is
{_two(each["rho with the share of a style"])}.

The likeliest style is the one that a model saw most in {_two(each["likeliest is the most trained"])} of all
models and tasks. How often each is the likeliest (and its share of the training data): {shares}.
"""


def _choosing(result: dict[str, Any]) -> str:
    found = result["choosing"]
    scales = [found[scale] for scale in (*SCALES, "target")]
    heads = ["", *(f"{100 * each['share of compute']:.1f} % of the compute" for each in scales)]
    rows = [
        [name, *(_interval(each["decision accuracy"][name]) for each in scales)]
        for name in scales[0]["decision accuracy"]
    ]
    for name, which in (("chosen in sample", "in sample"), ("chosen on other corpora", "out of sample")):
        rows.append([f"best of 80 proxies, {name}", *(_two(each["one of 80"][which]) for each in scales)])
    accuracies = found["accuracy of the targets"].values()
    return f"""\
### Which corpus makes the better target?

Share of the pairs of {len(accuracies)} corpora that are ordered as the target's mean accuracy orders them,
with 90 % intervals over corpora. The targets' accuracies are {min(accuracies):.2f} to {max(accuracies):.2f}.

{_table(heads, rows)}"""


def _forecasting(result: dict[str, Any]) -> str:
    rows = [
        [
            kind,
            f"1/{times}",
            f"{each['refused']} of {each['series']}",
            *_error_cells(each["kept"]),
            *_error_cells(each["refused, but forced"]),
        ]
        for kind, by_times in result["forecasting"].items()
        for times, each in by_times.items()
    ]
    errors = ["rmse", "of last value", "covered"]
    within = result["within runs"]
    return f"""\
### Where will a run end?

Runs: {result["runs"]}. Of the forecasts of their last checkpoint the root of the mean squared error, in
nats or shares, beside that of the last value known; and how often the 90 % interval held what came. On the
right the forecasts that were refused, made nevertheless. The chosen proxy is `{result["chosen proxy"]}`, the
one that ranks the models above best.

{_table(["series", "known", "refused", *errors, *(f"refused: {each}" for each in errors)], rows)}
Within a run text CE orders the checkpoints by a task's accuracy at rho {_two(within["text CE"])}, expert CE
(best style) at {_two(within["expert CE, best style"])}.
"""


def _error_cells(each: dict[str, Any]) -> list[str]:
    if not each["series"]:
        return ["", "", ""]
    return [f"{each['rmse']:.3f}", f"{each['rmse of last value']:.3f}", _two(each["covered"])]


def _stopping(result: dict[str, Any]) -> str:
    rule = result["stop rule"]
    rows = [
        [
            kind,
            str(each["decisions"]),
            str(each["refused"]),
            _share(each["wrong stops"], each["stops"]),
            _share(each["too late"], each["should stop"]),
            _share(each["series stopped wrongly"], each["series stopped"]),
        ]
        for kind, each in result["stopping"].items()
    ]
    heads = ["series", "decisions", "refused", "wrong stops", "went on too long", "wrong first stops"]
    return f"""\
### When may a run stop?

The rule: stop when the gain by the end is below {rule["gain"]} (nats, or a share) with a probability above
{rule["probability"]}. It is asked at each checkpoint from the sixth on; a refusal means to go on. A stop is
wrong if the gain came after all; a run goes on too long where it did not come.

{_table(heads, rows)}"""


def _share(number: int, of: int) -> str:
    return f"{number} of {of}" + (f" ({100 * number / of:.0f} %)" if of else "")


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".replace("-0.00", "0.00")


def _interval(found: list[float | None]) -> str:
    value, *ends = found
    known = [_two(end) for end in ends if end is not None]
    return f"{_two(value)} [{', '.join(known)}]" if known else _two(value)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
