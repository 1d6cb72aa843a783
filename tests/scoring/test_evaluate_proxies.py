"""Proxies of records are those of one TokenProxies over transformers' own logits of whole solutions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_pce import TokenProxies, proxy_names
from lightning_pce._errors import UserError
from lightning_pce.runs._headers import plain
from lightning_pce.runs.history import History
from lightning_pce.runs.task_values import logged
from lightning_pce.scoring import settings as settings_module
from lightning_pce.scoring import solution_proxies
from lightning_pce.scoring.chunk_totals import Tokens
from lightning_pce.scoring.chunks import Work, folder_of
from lightning_pce.scoring.data import read_data
from lightning_pce.scoring.evaluate import evaluate, summary
from lightning_pce.scoring.settings import Settings
from lightning_pce.scoring.solution_proxies import SolutionProxies, Solutions
from lightning_pce.scoring.token_counts import TokenCounts
from lightning_pce.scoring.tokenizing import tokenize
from tests.helpers.tiny_checkpoints import tiny_checkpoint, tiny_tokenizer

SECONDS = 120
ROOT = Path(__file__).parents[2]
WORDS = ["other", "water", "winter", "finger", "thunder", "leather", "naïve", "漢字", "in the end"]
ROWS = [
    {"prompt": f"{n} of {word}:", "completion": f" {word} " * (1 + n % 3)} for n, word in enumerate(WORDS)
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, another of another tokenizer, solutions that fit into their contexts, and a record of one."""
    folder = tmp_path_factory.mktemp("proxies")
    tiny_checkpoint(folder / "model", bos=True)
    tiny_checkpoint(folder / "words", vocab="words")
    write_rows(folder / "task.jsonl", ROWS)
    (folder / "corpus.txt").write_text("the water in the end\n\nthunder, winter", encoding="utf-8")
    evaluate([folder / "model"], [folder / "task.jsonl"], folder / "r.jsonl", proxies=True)
    return folder


def record_of(path):
    (record,) = History.load(path)
    return record


def whole_logits(folder, rows):
    """The tokenizer, and of each row the logits and labels of the whole document, prompts masked."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (each.from_pretrained(folder) for each in (AutoModelForCausalLM, AutoTokenizer))
    found = []
    for row in rows:
        text = row["prompt"] + row["completion"]
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        ends = torch.tensor([[end for _, end in encoded["offset_mapping"]]])
        labels = torch.where(ends > len(row["prompt"]), ids, -100)
        with torch.no_grad():
            found.append((model(input_ids=ids).logits, labels))
    return tokenizer, found


def proxies_of(batches, **settings):
    metric = TokenProxies(shift=True, **settings)
    for logits, labels in batches:
        metric.update(logits, labels)
    return metric.compute()


def assert_same(record, result):
    """The 160 numbers and the counts, to the rounding of a product of other rows."""
    for name in (*proxy_names(), *(f"{name}_se" for name in proxy_names()), "sequences", "tokens", "nan"):
        assert record.values[f"proxy_{name}"] == pytest.approx(float(result[name]), rel=2e-5, abs=1e-6), name


def test_proxies_are_those_of_whole_documents(folder):
    record = record_of(folder / "r.jsonl")
    _, batches = whole_logits(folder / "model", ROWS)
    assert_same(record, proxies_of(batches))
    assert record.values["proxy_sequences"] == len(ROWS)
    assert record.values["proxy_tokens"] == record.values["ce_completion_count"]
    assert record.how["proxies"] == {
        "last_n": 1000,
        "inverse": "reciprocal",
        "gaussian_center": 1.0,
        "gaussian_width": 1.0,
        "vocabulary": batches[0][0].shape[-1],
        "frequency": "sequence",
    }
    assert "80 proxies of 9 solutions" in summary(folder / "r.jsonl", [record.run])[0]


def test_without_them_a_record_and_its_key_are_as_ever(folder, tmp_path):
    evaluate([folder / "model"], [folder / "task.jsonl"], tmp_path / "r.jsonl")
    plain, more = record_of(tmp_path / "r.jsonl"), record_of(folder / "r.jsonl")
    assert plain.run != more.run
    assert "proxies" not in plain.how
    assert not [name for name in plain.values if name.startswith("proxy_")]
    assert {name: more.values[name] for name in plain.values} == plain.values
    assert {**plain.how, "proxies": more.how["proxies"]} == more.how
    torch.testing.assert_close(plain.digest(), more.digest(), atol=0, rtol=0)
    # The key that version 0.7 gave these settings: its records are found.
    old = Settings("windows", None, None, None, "auto", None, 1 << 25, text=True, step=None, trust=False)
    assert old.key(model="m", data="d", name="n", device="cpu") == "2eaeb39605525af0"


def test_a_list_of_what_was_logged_is_not_flooded_but_each_can_be_asked_for(folder):
    records = History.load(folder / "r.jsonl")
    with pytest.raises(UserError, match="there is accuracy, top5_accuracy"):
        logged(records, "bleu")
    assert logged(records, "proxy_top1_uniform")["model"] == records[0].values["proxy_top1_uniform"]


def test_the_last_tokens_of_documents_cut_into_windows_batches_and_chunks_count(
    folder, tmp_path, monkeypatch
):
    """Of documents longer than the context the logits are those of windows, as in the file of all tokens."""
    from pyarrow import parquet

    monkeypatch.setattr(solution_proxies, "LAST_N", 90)
    monkeypatch.setattr(solution_proxies, "_AT_ONCE", 2)
    monkeypatch.setitem(settings_module.PROXIES, "last_n", 90)
    rows = [{"prompt": f"{n}:", "completion": "water in the " * 3 * n + "end"} for n in range(1, 8)]
    data = write_rows(tmp_path / "long.jsonl", rows)
    options = {"proxies": True, "context": 16, "batch_tokens": 40}
    evaluate([folder / "words"], [data], tmp_path / "r.jsonl", save_tokens=tmp_path / "t.parquet", **options)
    record = record_of(tmp_path / "r.jsonl")
    table = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    tokenizer = tiny_tokenizer("words")
    means, first = [], []
    for n, row in enumerate(rows):
        prompt = len(tokenizer(row["prompt"])["input_ids"])
        own = [token for token in table if token["document"] == str(n) and token["position"] >= prompt]
        last = sorted(own, key=lambda token: token["position"])[-90:]
        means.append(np.mean([token["ce"] for token in last]))
        first.append(np.mean([token["rank"] == 1 for token in last]))
    assert record.values["proxy_tokens"] < record.values["ce_completion_count"]
    assert record.values["proxy_ce_uniform"] == pytest.approx(np.mean(means), rel=1e-9)
    assert record.values["proxy_top1_uniform"] == pytest.approx(np.mean(first), rel=1e-9)
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert record.values["proxy_ce_uniform_se"] == pytest.approx(error, rel=1e-9)


def test_work_that_was_ended_goes_on_with_other_threads_and_gives_the_same_bytes(
    folder, tmp_path, monkeypatch
):
    rows = [{"prompt": f"{n}:", "completion": " water" * (n % 17 + 1)} for n in range(36)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    options = {"proxies": True, "context": 32, "batch_tokens": 64}
    evaluate([folder / "model"], [data], tmp_path / "whole.jsonl", **options)
    times, keep = [0], Work.keep

    def keep_few(self, number, arrays):
        times[0] += 1
        if times[0] == 3:
            raise KeyboardInterrupt
        keep(self, number, arrays)

    monkeypatch.setattr(Work, "keep", keep_few)
    with pytest.raises(KeyboardInterrupt):
        evaluate([folder / "model"], [data], tmp_path / "ended.jsonl", **options)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        evaluate([folder / "model"], [data], tmp_path / "ended.jsonl", **options)
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "ended.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_weights_by_the_frequency_in_a_corpus_or_a_table(folder, tmp_path):
    tokenizer, batches = whole_logits(folder / "model", ROWS)
    texts = (folder / "corpus.txt").read_text(encoding="utf-8").split("\n\n")
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    counts = np.bincount(np.concatenate(encoded), minlength=len(tokenizer))
    expected = proxies_of(batches, token_counts=torch.from_numpy(counts))
    np.save(tmp_path / "counts.npy", counts)
    evaluate(
        [folder / "model"],
        [folder / "task.jsonl"],
        tmp_path / "r.jsonl",
        proxies=True,
        token_counts=tmp_path / "counts.npy",
    )
    table = record_of(tmp_path / "r.jsonl")
    evaluate(
        [folder / "model", folder / "words"],
        [folder / "task.jsonl"],
        tmp_path / "both.jsonl",
        proxies=True,
        token_counts=folder / "corpus.txt",
    )
    corpus, other = History.load(tmp_path / "both.jsonl")
    assert_same(table, expected)
    assert_same(corpus, expected)
    within = record_of(folder / "r.jsonl")
    assert within.values["proxy_ce_frequency"] != pytest.approx(table.values["proxy_ce_frequency"], rel=1e-3)
    # Each is another record; what the weights are from is equal for the two tokenizers.
    assert len({within.run, table.run, corpus.run}) == 3
    frequencies = [each.how["proxies"]["frequency"] for each in (table, corpus, other)]
    assert frequencies[0].startswith("table ")
    assert frequencies[0].endswith(f", tokenizer {table.how['tokenizer']}")
    assert frequencies[1] == frequencies[2] == f"corpus {frequencies[1][-16:]}"


def test_chats_count_what_the_assistant_says(folder, tmp_path):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
    tiny_checkpoint(tmp_path / "chat", chat_template=template)
    turns = [("user", "water?"), ("assistant", "in the end"), ("user", "why"), ("assistant", "other")]
    chats = [{"messages": [{"role": role, "content": text} for role, text in turns]}] * 2
    data = write_rows(tmp_path / "chats.jsonl", chats)
    evaluate([tmp_path / "chat"], [data], tmp_path / "r.jsonl", proxies=True)
    record = record_of(tmp_path / "r.jsonl")
    assert record.values["proxy_tokens"] == record.values["ce_completion_count"] > 0
    # Both are one text, so their mean is that of its tokens.
    mean = record.values["ce_completion_mean"]
    assert record.values["proxy_ce_uniform"] == pytest.approx(mean, rel=1e-6)
    assert record.values["proxy_ce_uniform_se"] == pytest.approx(0, abs=1e-6)


def test_documents_without_a_completion_and_tokens_without_numbers_are_said(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer("words")
    (token,) = tokenizer("r")["input_ids"]
    broken = tiny_checkpoint(tmp_path / "broken", vocab="words")
    model = AutoModelForCausalLM.from_pretrained(broken)
    model.lm_head = torch.nn.Linear(16, len(tokenizer), bias=False)
    model.config.tie_word_embeddings = False
    weight = torch.randn(len(tokenizer), 16, generator=torch.Generator().manual_seed(0))
    weight[token] = torch.nan
    model.lm_head.weight.data = weight
    model.save_pretrained(broken)
    data = write_rows(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "water", "completion": ""}])
    evaluate([broken], [data], tmp_path / "r.jsonl", proxies=True)
    record = record_of(tmp_path / "r.jsonl")
    assert record.values["proxy_nan"] > 0
    assert record.values["proxy_tokens"] == record.values["proxy_sequences"] == 0
    assert np.isnan(record.values["proxy_ce_uniform"])
    assert "1 document has no token of a completion, and no proxies" in record.how["notes"]


def test_a_token_of_probability_0_makes_the_loss_infinite_in_the_line_too(folder):
    data = tokenize(read_data(folder / "task.jsonl"), tiny_tokenizer("words"))
    counted = [np.flatnonzero(each.scored) for each in data.documents]
    solutions = Solutions(data, counted)
    proxies = SolutionProxies(solutions, 300, "sequence")
    for number, (document, places) in enumerate(zip(data.documents, counted, strict=True)):
        columns = [np.full(len(places), value, np.float32) for value in (1.0, 0.5, 2.0, 0.3, 0.4)]
        columns[0][-1], columns[3][-1] = np.inf, 0.0
        same = [np.full(len(places), number)] * 2
        kept = solutions.kept(Tokens(*same, places, document.ids[places], document.groups[places], *columns))
        assert kept["solution_statistics"].shape == (5, len(solutions.positions[number]))
        proxies.add(kept)
    values = proxies.values()
    assert values["proxy_ce_uniform"] == np.inf
    assert values["proxy_ce_probability"] == pytest.approx(1.0)  # it has weight 0
    assert np.isnan(values["proxy_ce_uniform_se"])
    assert plain(values["proxy_ce_uniform"]) == "inf"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"proxies": False}, "--token-counts is what proxies are weighted by: give --proxies too"),
        ({"protocol": "llama.cpp"}, "--proxies are of completions, but --protocol llama.cpp scores half"),
        ({"group": "prompt"}, "--proxies need the groups prompt and completion, which --group prompt"),
    ],
)
def test_options_that_do_not_go_with_proxies(folder, tmp_path, options, said):
    given = {"proxies": True, "token_counts": folder / "corpus.txt", **options}
    with pytest.raises(UserError, match=said):
        evaluate([folder / "model"], [folder / "task.jsonl"], tmp_path / "r.jsonl", **given)


def test_data_without_completions_are_refused_with_what_is_needed(folder, tmp_path):
    with pytest.raises(UserError, match=r"corpus.txt does not say .* give rows of `prompt` and `completion`"):
        evaluate([folder / "model"], [folder / "corpus.txt"], tmp_path / "r.jsonl", proxies=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([[1, 2]], r"holds int64 of shape \(1, 2\), not a whole number for each id"),
        ([0.5, 1.0], r"holds float64 of shape \(2,\)"),
        ([True, False], r"holds bool of shape \(2,\)"),
        ([3, -1, 4], "has -1 for id 1: counts are 0 or more"),
        ([0, 0], "counts 0 tokens in all"),
        (np.zeros(0, int), "counts 0 tokens in all"),
        ([2**62] * 9, "counts [0-9]+ tokens in all: take those of a corpus"),
    ],
)
def test_tables_that_count_nothing(tmp_path, table, said):
    np.save(tmp_path / "counts.npy", np.array(table))
    with pytest.raises(UserError, match=f"--token-counts .*counts.npy {said}"):
        TokenCounts.read(tmp_path / "counts.npy")


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(UserError, match=r"counts.npy: No such file"):
        TokenCounts.read(tmp_path / "counts.npy")
    np.save(tmp_path / "counts.npy", np.arange(100))
    whole = (tmp_path / "counts.npy").read_bytes()
    for content in (b"", b"1 2 3", whole[:20], whole[:-8]):
        (tmp_path / "counts.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"counts.npy can't be read as .npy \(.*: write it by numpy.save"):
            TokenCounts.read(tmp_path / "counts.npy")


def test_a_table_fits_the_tokenizer_the_model_or_what_lies_between(tmp_path):
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    keys = set()
    for length in (size, size + 1, size + 3):
        np.save(tmp_path / "counts.npy", (np.arange(length) < 5).astype(np.uint16))
        counts = TokenCounts.read(tmp_path / "counts.npy")
        found = counts.of(tokenizer, size + 3, "m")
        assert found.tolist() == [1] * 5 + [0] * (size - 2)
        keys.add(counts.key)
    assert len(keys) == 1
    for length in (size - 1, size + 4):
        np.save(tmp_path / "counts.npy", np.ones(length, int))
        with pytest.raises(UserError, match=f"has {length} numbers, but m has {size} to {size + 3} tokens"):
            TokenCounts.read(tmp_path / "counts.npy").of(tokenizer, size + 3, "m")


def test_ids_that_a_model_has_no_embeddings_of_count_0_or_are_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    table = np.ones(size, int)
    np.save(tmp_path / "counts.npy", table)
    with pytest.raises(UserError, match=f"counts the token {size - 1}, but m has {size - 1}: count"):
        TokenCounts.read(tmp_path / "counts.npy").of(tokenizer, size - 1, "m")
    table[-1] = 0  # as of a padding token that was added to the tokenizer
    np.save(tmp_path / "counts.npy", table)
    assert len(TokenCounts.read(tmp_path / "counts.npy").of(tokenizer, size - 1, "m")) == size - 1
    (tmp_path / "corpus.txt").write_text("the thing", encoding="utf-8")
    with pytest.raises(UserError, match=r"has the token [0-9]+, but m has 100: its tokenizer is another"):
        TokenCounts.read(tmp_path / "corpus.txt").of(tokenizer, 100, "m")


def test_a_table_is_not_taken_for_models_of_two_tokenizers(folder, tmp_path):
    np.save(tmp_path / "counts.npy", np.ones(len(tiny_tokenizer()), int))
    with pytest.raises(UserError, match=r"counts the tokens of one tokenizer, but .*model and .*words have"):
        evaluate(
            [folder / "model", folder / "words"],
            [folder / "task.jsonl"],
            tmp_path / "r.jsonl",
            proxies=True,
            token_counts=tmp_path / "counts.npy",
        )
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.slow
def test_two_processes_after_a_kill_give_the_bytes_of_one(folder, tmp_path):
    """Where processes meet, merging a metric's state over ranks would wait without end."""
    rows = [{"prompt": f"{n}:", "completion": " water in the end" * (1 + n % 9)} for n in range(400)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "corpus.txt").write_text("the water in the end", encoding="utf-8")
    options = ["--proxies", "--token-counts", "corpus.txt", "--context", "32", "--batch-tokens", "64"]
    command = [
        sys.executable,
        "-m",
        "lightning_pce",
        "evaluate",
        folder / "model",
        "--data",
        data.name,
        *options,
    ]

    def started(out, *more):
        return subprocess.Popen(
            [*command, "-o", out, *more],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    killed = started("two.jsonl")
    deadline = time.monotonic() + SECONDS
    while len(list(folder_of(tmp_path / "two.jsonl").glob("*/0*.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=SECONDS)
    assert not (tmp_path / "two.jsonl").exists()
    process = started("two.jsonl", "--devices", "2")
    said, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert "80 proxies of 400 solutions" in said
    given = {"proxies": True, "token_counts": tmp_path / "corpus.txt", "context": 32, "batch_tokens": 64}
    evaluate([folder / "model"], [data], tmp_path / "one.jsonl", **given)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
