"""The proxy study: what it writes is in the documentation, and a small one goes all the way."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "examples" / "proxy_study.py"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(STUDY.parent)


def committed():
    return json.loads((ROOT / "benchmarks" / "proxy_study.json").read_text(encoding="utf-8"))


def test_the_documentation_says_what_the_results_say():
    from proxy_study_parts.page import with_section

    result = committed()
    page = (ROOT / "docs" / "proxies.md").read_text(encoding="utf-8")
    assert with_section(page, result) == page


def test_what_the_page_says_in_words_is_in_the_results():
    """The section "What came out", which is not written by the study."""
    result = committed()
    same, new = result["ranking"]["tasks"], result["ranking"]["models_and_tasks"]
    assert same["text CE"]["rho"][1] < 0 < same["expert CE"]["less text CE"][1]
    fits = ["three proxies", "RankSVM, linear", "RankSVM, RBF"]
    assert all(same[name]["less known tasks"][1] < 0 for name in [*fits, "best single proxy"])
    highest = max((row["rho"][0], name) for name, row in same.items() if not name.endswith("best style"))
    assert highest[1] in fits
    assert all(new[name]["rho"][0] <= new["best single proxy"]["rho"][0] for name in fits)
    assert same["expert CE"]["rho"][0] < same["expert CE, best style"]["rho"][0]

    for scale in ("small", "middle"):
        rows, many = result["choosing"][scale]["decision accuracy"], result["choosing"][scale]["one of 80"]
        named = ["text CE", "expert CE", "expert CE, best style"]
        assert rows["accuracy"][0] > max(rows[name][0] for name in named)
        assert many["in sample"] > rows["accuracy"][0]
        assert many["out of sample"] <= rows["accuracy"][0] + 0.05

    for kind in ("accuracy", "mean accuracy"):
        assert all(each["refused"] == each["series"] for each in result["forecasting"][kind].values())
    made = {kind: each for kind, each in result["forecasting"].items() if "accuracy" not in kind}
    assert sum(each["2"]["refused"] for each in made.values()) > sum(
        each["2"]["kept"]["series"] for each in made.values()
    )
    assert all(each["18"]["kept"]["covered"] < 0.9 for each in made.values())
    for kind, nearer in (("chosen proxy", True), ("expert CE, best style", False)):
        kept = [each["kept"] for each in made[kind].values()]
        assert all((each["rmse"] < each["rmse of last value"]) == nearer for each in kept)
    stops = [each for each in result["stopping"].values() if each["stops"]]
    assert sum(each["stops"] for each in stops) < 0.1 * sum(each["decisions"] for each in stops)
    assert sum(each["wrong stops"] for each in stops) > 0.25 * sum(each["stops"] for each in stops)
    assert result["within runs"]["text CE"] > result["within runs"]["expert CE, best style"] - 0.02


@pytest.mark.parametrize("kind", ["GPT", "GRU", "LSTM", "TCN"])
def test_a_model_reads_on_from_its_state(kind):
    from proxy_study_parts.models import build

    torch.manual_seed(0)
    model = build(kind, vocabulary=20, width=16, layers=2, context=64)
    ids = torch.randint(20, (2, 40))
    whole, _ = model(ids)
    first, state = model(ids[:, :25])
    then, state = model(ids[:, 25:26], state)
    last, _ = model(ids[:, 26:], state)
    torch.testing.assert_close(torch.cat([first, then, last], 1), whole, atol=1e-5, rtol=1e-4)
    changed = ids.clone()
    changed[:, 30] = (ids[:, 30] + 1) % 20
    assert torch.equal(model(changed)[0][:, :30], whole[:, :30])  # it sees nothing of what comes


def test_solutions_are_right_in_every_style_and_fit_in_a_row():
    from proxy_study_parts import tasks
    from proxy_study_parts.text import CONTEXT, decode, encode

    letters = tasks.LETTERS
    by_hand = {
        "rev": lambda word: word[::-1],
        "srt": lambda word: "".join(sorted(word)),
        "nxt": lambda word: word.translate(str.maketrans(letters, letters[1:] + letters[0])),
        "add": lambda a, b: f"{int(a[0]) + int(b[0])}{int(a[1]) + int(b[1])}",
        "cnt": lambda letter, word: str(word.count(letter)),
        "get": lambda *words: next(word[1] for word in words[:-1] if word[0] == words[-1]),
    }
    for both in tasks.held_out(0).values():
        items = [item for part in both for item in part]
        assert len({item.prompt for item in items}) == 2 * tasks.ITEMS
        for item in items:
            name, *words = item.prompt.split()
            assert item.answer == by_hand[name](*words)
            for style in tasks.STYLES:
                text = tasks.solution(item, style)
                assert tasks.answer_of(text) == item.answer
                assert decode(encode(text)) == text
                assert len(item.prompt + text) < CONTEXT
    assert tasks.answer_of("no mark\n") is None
    assert tasks.answer_of(">not ended") is None


def test_what_is_written_is_the_likeliest_character_each_time():
    from proxy_study_parts.examiner import write
    from proxy_study_parts.models import build
    from proxy_study_parts.text import CHARACTERS, CONTEXT, encode

    torch.manual_seed(1)
    model = build("GRU", len(CHARACTERS), 16, 1, CONTEXT)
    with torch.no_grad():
        for prompt, text in zip(prompts := ["rev ab", "add 11 22", "a"], write(model, prompts), strict=True):
            ids = torch.tensor([encode("\n" + prompt + text)])
            likeliest = model(ids)[0].argmax(-1)[0]
            begin, end = len(prompt), len(prompt) + len(text.partition("\n")[0])
            assert end > begin
            assert torch.equal(likeliest[begin:end], ids[0, begin + 1 : end + 1])


def test_nobody_is_trained_on_what_is_asked():
    from proxy_study_parts.population import fixed_mixes, models
    from proxy_study_parts.tasks import FAMILIES, STYLES, held_out
    from proxy_study_parts.text import Corpus, decode
    from proxy_study_parts.training import training_rows

    asked = {item.prompt for parts in held_out(3).values() for part in parts for item in part}
    text = [Corpus(name, np.zeros(100, np.uint8), np.zeros(10, np.uint8)) for name in ("plays", "bible")]
    mix = fixed_mixes()["half and half"]
    rows = training_rows(mix, text, 2000, 0, asked)
    lines = {line for row in rows for line in decode(row.tolist()).split("\n")[1:-1] if line}
    prompts = {re.split(r"[:?]| is ", line)[0] for line in lines}
    assert len(prompts) > 1000
    assert not prompts & asked
    for unit in models():
        assert sum(unit.mix.sources.values()) == pytest.approx(1)
        assert set(unit.mix.sources) == {"plays", "bible", *FAMILIES}
        assert set(unit.mix.styles) == set(STYLES)


@pytest.mark.slow
def test_a_small_study_goes_on_where_it_was_killed(tmp_path):
    command = [sys.executable, str(STUDY), "--quick", "--out", str(tmp_path)]
    units = tmp_path / "units"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as killed:
        until = time.monotonic() + 120
        while len(list(units.glob("*.json"))) < 3 and killed.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        killed.kill()
    kept = {path: path.stat().st_mtime_ns for path in units.glob("*.json")}
    assert 3 <= len(kept) < 25
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(path.stat().st_mtime_ns == kept[path] for path in kept)
    result = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert len(result["models"]) == 12
    assert set(result["ranking"]) == {"tasks", "models_and_tasks"}
    assert all(len(rows) >= 10 for rows in result["ranking"].values())
    assert result["choosing"]["small"]["decision accuracy"]["accuracy"][0] >= 0
    assert (
        result["stopping"]["text CE"]["decisions"] == 4
    )  # ten checkpoints, from the sixth to the last but one
    assert result["forecasting"]["accuracy"]["2"]["series"] == 6
    assert "### When may a run stop?" in done.stdout
    assert (tmp_path / "proxies.png").stat().st_size > 20_000
