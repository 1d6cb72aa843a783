"""README.md and docs/: every code block runs as a reader would type it, and every link has a target."""

import math
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.pages import ROOT, written_pages

PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in written_pages())]
# Pages whose code stands alone: a reader pastes it into an empty file.
ALONE = ("docs/start/", "docs/recipes/")
# Pages whose code is not run here: test_docs_site.py looks at the gallery's pictures, test_recipes.py has the
# stacks that are installed for it alone.
ELSEWHERE = (
    "docs/gallery.md",
    *(f"docs/recipes/{name}.md" for name in ("litgpt", "others", "torchtune", "trl")),
)
# Pages of others: their links are looked at, their code is not run here.
BESIDE = [
    *(
        name
        for name in (
            "benchmarks/README.md",
            "benchmarks/studies/README.md",
            "CONTRIBUTING.md",
            "tests/README.md",
        )
        if (ROOT / name).exists()
    ),
    *sorted(f"docs/reference/{path.name}" for path in (ROOT / "docs/reference").glob("*.md")),
]


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    """The code blocks of a page, each with the number of its first line."""
    found = re.finditer(rf"^```{language}\n(.*?)^```", text(page), flags=re.MULTILINE | re.DOTALL)
    return [(text(page)[: match.start(1)].count("\n"), match[1]) for match in found]


def run(page, line, block, names):
    """Run a block with line numbers of its page, so that a traceback shows them."""
    exec(compile("\n" * line + block, str(ROOT / page), "exec"), names)


def tags_in_logs():
    """The names of the images that TensorBoard finds in ``logs``."""
    names = set()
    for path in Path("logs").rglob("events*"):
        events = EventAccumulator(str(path))
        events.Reload()
        names |= set(events.Tags()["images"])
    return names


def logged(trainer, *names):
    return all(trainer.callback_metrics[name] > 0 for name in names)


def by_median(checkpoint):
    """Whether the file of the best checkpoint is there and bears its median."""
    return (
        f"val_ce_p50={checkpoint.best_model_score:.3f}" in checkpoint.best_model_path
        and Path(checkpoint.best_model_path).is_file()
    )


# What a block leaves behind, by a piece of its text.
OUTCOMES = {
    "accelerator.save_state(": lambda names: (
        names["result"]["count"] == 84 and Path("best_by_p50").is_dir() and names["best"] < 2
    ),
    "same_windows = torch.Generator()": lambda names: (
        names["losses"]["val"]["count"] == 10 * 4 * 16 and Path("best_by_p50.pt").exists()
    ),
    "fit_power_law(steps, accuracies": lambda names: (
        names["forecast"].refused is None and 0.42 < names["later"].low < names["later"].high < 0.5
    ),
    "first = PercentileCrossEntropy(": lambda names: 6 < names["first"].compute()["p50"] < 9,
    'PercentileHistory("runs/history.jsonl"': lambda names: (
        logged(names["fitting"], "val_ce_p50") and len(names["writer"].history) == 3
    ),
    'History.load("runs/history.jsonl")': lambda names: (
        names["history"].index(names["last"]) == 2 and names["best"].digest().shape == (1027, 2)
    ),
    "class ByteLM(PercentileCEMixin": lambda names: by_median(names["best"]),
    "ce = PercentileCECallback(shift=True)": lambda names: by_median(names["best"]),
    "class PercentileTrainer(PercentileCETrainerMixin, Trainer):  #": lambda names: (
        Path(names["trainer"].state.best_model_checkpoint).is_dir()
        and names["trainer"].state.best_metric
        == min(log["eval_ce_p50"] for log in names["trainer"].state.log_history if "eval_ce_p50" in log)
    ),
    "lowest, chosen = ": lambda names: Path("best.pt").is_file() and 0 < names["lowest"] < 5.6,
    "class LitLM(": lambda names: "LitLM" in names,
    'EarlyStopping("val_ce_p50"': lambda names: (
        logged(names["trainer"], "val_ce_p50") and Path(names["best"].best_model_path).exists()
    ),
    "verdict(history.history)": lambda names: (
        len(names["history"].history) == 3
        and set(names["verdict"](names["history"].history).picks) == {"mean", "p50", "p95"}
    ),
    "DocumentLM(model)": lambda names: math.isnan(names["results"]["val_ce_p50_low"]),
    "losses = torch.rand(2, 100_000)": lambda names: (
        names["td"].count(names["both"]) == 200_000
        and abs(names["td"].quantile(names["both"], 0.5) - math.log(2)) < 0.02
        and names["weights"][512] > 50 * names["weights"][0]
    ),
    "hard = torch.randn(200, 1": lambda names: names["median"].low < 1 < names["median"].high,
    "intervals.difference(": lambda names: names["change"].paired and names["change"].high < 0,
    'ModelCheckpoint(monitor="val_ce_p50")]': lambda names: names["ce"] in names["trainer"].callbacks,
    "TupleLM(model)": lambda names: 0 < names["results"]["val_ce_p5"] < names["results"]["val_ce_p95"],
    "WindowLM(model)": lambda names: logged(names["trainer"], "train_ce_mean", "train_ce_p50"),
    "percentile_checkpoints(": lambda names: all(Path(c.best_model_path).exists() for c in names["best"]),
    "PercentileFigures()": lambda names: tags_in_logs() == {"val_ce_fan", "val_ce_quantiles"},
    "plot.quantile_curve(": lambda names: all(
        Path(name).stat().st_size > 5_000 for name in ("curves.png", "fan.png")
    ),
    "plot.decision(": lambda names: all(
        Path(f"{name}.png").stat().st_size > 5_000
        for name in ("decision", "difference", "intervals", "concordance")
    ),
    "TrainedLM(model)": lambda names: logged(names["trainer"], "train_ce_mean", "train_ce_p50"),
    "TwoSets(model)": lambda names: logged(
        names["tester"], "val_web_ce_p50", "val_code_ce_p50", "val_ce_p50"
    ),
    "PlainLM(model)": lambda names: logged(names["plain_trainer"], "val_ce_mean", "val_ce_p50", "val_ce_p95"),
    "percentiles=(50, 99.9))": lambda names: names["result"]["count"] == 64,
    "ExpectedPassAtN(": lambda names: names["passed"].compute()["count"] == 2,
    "store_topk(model": lambda names: names["loss"] > 0 and names["teacher"].token_ids.shape == (8, 12, 8),
    "import distillation": lambda names: names["whole"].abs() < 1e-5 and names["few"].abs() < 1e-5,
    "hf_trainer = PercentileTrainer(": lambda names: (
        names["hf_trainer"].state.log_history[-1]["eval_ce_p50"] > 0
    ),
    "is_completion = ": lambda names: (
        names["result"]["completion_count"] == 12 and names["result"]["prompt_count"] == 18
    ),
    "torch.bucketize(": lambda names: (
        [names["result"][f"{name}_count"] for name in ("first", "middle", "late")] == [6, 8, 16]
    ),
    "ExplainedLM(model)": lambda names: (
        len(names["explained"].totals) == 3 and names["explained"].totals[-1][:, 0].sum() == 88
    ),
    "tail.add(scored, logits)": lambda names: (
        names["tail"].compute().rank[29] > 0 and names["totals"].compute()[:, 0].sum() == 30
    ),
    "moved(before, after, n=5)": lambda names: (
        len(names["moved"](names["before"], names["after"]).labels) == 10
    ),
    "BitsPerByte(bytes_of)": lambda names: names["bits"].compute() > 0,
    "linear_token_statistics(hidden, head": lambda names: names["metric"].compute()["count"] == 30,
    "output_layer(model)": lambda names: names["stats"].valid.sum() == 30,
    "TokenProxies()": lambda names: names["result"]["tokens"] == 64,
    "norms.update(": lambda names: names["norms"].compute()["count"] == 100,
    "exchange.to_dict(": lambda names: torch.equal(names["copy"], names["norms"].digest),
    "decision = verdict(history)": lambda names: (
        len(names["history"]) == 4 and "Error bars are missing" in str(names["decision"])
    ),
    "comparison = compare(": lambda names: (
        names["comparison"].reference == "epoch 0" and len(names["comparison"].differences) == 2
    ),
    "import_records(": lambda names: (
        names["History"].load(f"{names['folder']}/records.jsonl")[0].values["ce_p50"] == 1.5
    ),
    "ahead = forecast(": lambda names: (
        names["ahead"].level == 0.9 and len(names["ahead"].steps) == 8 and Path("ahead.png").exists()
    ),
    "change = reshaping(": lambda names: 0 <= names["change"].better_share <= 1,
    "page = report(": lambda names: "error bars: step 200" in names["page"].read_text(encoding="utf-8"),
    "by_hand = verdict(": lambda names: names["by_hand"].shortlist == ("epoch 2",),
    "PowerLM(model)": lambda names: logged(names["power_trainer"], "val_ce_p50"),
    "normalizer=count / ranks": lambda names: (
        names["count"] == 88 and names["model"].lm_head.weight.grad.abs().sum() > 0
    ),
    "gated = NLL()": lambda names: 0 < names["gated"].item() < math.log(64) + 1,
    "weighting = suffix_weights(": lambda names: 40 < names["weighting"].effective.item() <= 44,
    "passed = DCO(8)": lambda names: names["passed"].item() > 10,
    "linear_token_log_prob(hidden, layer": lambda names: names["layer"].weight.grad.abs().sum() > 0,
    "compute_loss_func=loss_func": lambda names: (
        names["objective_trainer"].state.log_history[-1]["eval_loss"] > 3
    ),
    "table = ProxyTable.read(": lambda names: (
        names["report"].refused is None
        and len(names["scores"]) == 12
        and Path("proxy.png").stat().st_size > 5_000
    ),
    "decided = decision_accuracy(": lambda names: names["decided"].pairs == 15,
    "known = capability(": lambda names: (
        names["known"].mean.low < float((-names["losses"].double()).exp().mean()) < names["known"].mean.high
    ),
    'read_data("facts.jsonl")': lambda names: (
        names["data"].groups == ("prompt", "completion")
        and [document.unit for document in names["data"].documents] == ["cats", "cats"]
    ),
}


def checks_of(block):
    return [check for piece, check in OUTCOMES.items() if piece in block]


@pytest.fixture
def reader():
    """What a reader has before the first line of a page; docs/README.md says so."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    rows = [{"input_ids": ids, "labels": ids.clone()} for ids in torch.randint(64, (8, 12))]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    threads = torch.get_num_threads()  # pages of docs/start/ set it
    front_page = {}
    run("README.md", *blocks("README.md", "python")[0], front_page)
    yield {
        "model": LlamaForCausalLM(config),
        "train_loader": loader,
        "val_loader": loader,
        "train_set": rows,
        "eval_set": rows,
        "LitLM": front_page["LitLM"],
    }
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and blocks(page, "python")])
def test_blocks_run_in_order(page, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"} if page.startswith(ALONE) else reader
    for line, block in blocks(page, "python"):
        run(page, line, block, names)
        (outcome,) = checks_of(block)
        assert outcome(names), f"{page}, line {line + 1}"


def test_every_block_has_one_check_and_every_check_a_block():
    every = [block for page in PAGES if page not in ELSEWHERE for _, block in blocks(page, "python")]
    assert [len(checks_of(block)) for block in every] == [1] * len(every)
    assert len(every) == len(OUTCOMES)


def test_shell_lines_name_what_is_there():
    lines = [line for page in PAGES for _, block in blocks(page, "sh") for line in block.splitlines()]
    commands = [line.split("#")[0].strip() for line in lines]
    assert {"make demo", "make test", "pip install ."} <= set(commands)
    makefile, project = text("Makefile"), text("pyproject.toml")
    for command in commands:
        for target in re.findall(r"^make (\S+)", command):
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), command
    for page in PAGES:
        extras = ",".join(re.findall(r"pip install '\.\[([\w,]+)\]'", text(page)))
        for extra in filter(None, extras.split(",")):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"{page}: {extra}"
        for path in re.findall(r"\bexamples/\w+\.py", text(page)):
            assert (ROOT / path).is_file(), f"{page}: {path}"


def links(page):
    """The targets of links and images, outside of code."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text(page), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES + BESIDE)
def test_every_link_has_a_target(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target.resolve().relative_to(ROOT)), f"{page}: {link}"


def test_links_are_found():
    assert {"docs/fan_chart.png", "docs/start/names.md", "LICENSE"} <= set(links("README.md"))
    assert "lightning.md#without-the-mixin" in links("docs/torchmetrics.md")
    assert "several-dataloaders" in anchors("docs/lightning.md")


def test_the_index_names_every_page():
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert pages - {"README.md", "index.md"} <= set(links("docs/README.md"))
    assert "docs/README.md" in links("README.md")


def test_pictures_exist_and_are_small():
    names = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text("README.md"))
    assert names == ["docs/fan_chart.png", "docs/page.png", "docs/proxies.png"]
    assert all(10_000 < (ROOT / name).stat().st_size < 300_000 for name in names)
