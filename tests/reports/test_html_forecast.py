"""The forecast in a page: a band, or the reason why there is none; nothing of records that are no series."""

import json
import re

import pytest

from lightning_pce.reports._forecasts import forecasts_of
from lightning_pce.reports.html import LARGEST, report
from lightning_pce.runs import forecast
from lightning_pce.runs._words import number
from lightning_pce.runs.comparison import compare
from tests.helpers.html_pages import Page
from tests.helpers.scored_runs import hostile, scored
from tests.helpers.series_runs import STEPS, numbers, rising, with_digests

STRANGE = hostile(0).replace("\ud83d", "")  # which JSON gives back, and a file in UTF-8 does not hold


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    scalars = {"val_accuracy": numbers(rising), STRANGE: dict.fromkeys(STEPS, 1.0)}
    return with_digests(folder / "history.jsonl", numbers(), scalars=scalars)


@pytest.fixture(scope="module")
def written(history, tmp_path_factory):
    """A page as text, what a browser sees of it, and its forecasts in JSON."""
    path = report(history, tmp_path_factory.mktemp("page") / "page.html", task=STRANGE)
    [compared] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["comparisons"]
    text = path.read_text(encoding="utf-8")
    return text, Page(text), compared["forecasts"]


def test_mean_and_median_are_forecast_in_page_and_json(history, written):
    text, page, plain = written
    for each in plain[:2]:
        known = forecast(history, each["name"])
        assert each["values"] == pytest.approx(known.values.tolist(), abs=0.02)
        assert (each["refused"], each["bounds"], each["rising"]) == (None, [0, None], False)
        for prediction in each["predictions"]:
            for name in ("median", "low", "high"):
                assert number(prediction[name]) in page.words
        assert number(each["limit"]["median"]) in page.words
    assert [each["step"] for each in plain[0]["predictions"]] == [20_000, 40_000]
    assert "ce_p50: at step 20,000, 2 times the last, 2.2" in page.words
    described = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert [each[:21] for each in described[2:]] == ["Forecast of ce_mean: ", "Forecast of ce_p50: a"]
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"var\((--c-\w+)\)", text))
    assert [len(re.findall(f"{name}: #", text)) for name in used] == [2] * len(used)  # light and dark
    assert len(text.encode()) < LARGEST / 2


def test_a_refused_one_has_its_reason_and_no_picture(written):
    _, page, plain = written
    assert (plain[2]["name"], plain[2]["predictions"], plain[2]["limit"]) == (STRANGE, [], None)
    assert "No forecast: All values are 1.000: nothing rises or falls." in page.words
    assert "script" not in page.tags()


def test_a_task_that_was_logged_is_a_series_and_one_by_hand_too(history):
    of_mean, of_median, of_task = forecasts_of(compare(history, task="val_accuracy"))
    assert of_task.series.values.tolist() == list(numbers(rising).values())
    assert (of_task.series.bounds, of_task.series.errors) == ((0, 1), None)
    assert of_task.ahead[1].prediction == of_task.forecast.predict(40_000)
    assert 0.001 < of_median.series.errors[0] < of_mean.series.errors[0] < 1
    by_hand = {record.label: value for record, value in zip(history, numbers(rising).values(), strict=True)}
    other = forecasts_of(compare(history, task=by_hand))[2]
    assert (other.series.name, other.series.bounds) == ("task", None)
    assert other.series.values.tolist() == of_task.series.values.tolist()


def checkpoints(folder, model, steps=(100, 200)):
    for step in steps:
        name = model(step)
        found = scored(folder / "r.jsonl", 1, model=lambda _, name=name: name, step=step, documents=30)
    return found


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda folder: checkpoints(folder, "out/checkpoint-{}".format), ["ce_mean", "ce_p50"]),
        (lambda folder: checkpoints(folder, "seed{0}/checkpoint-{0}".format), []),
        (lambda folder: checkpoints(folder, "out/checkpoint-{}".format, (None, None)), []),
        (lambda folder: checkpoints(folder, "out/checkpoint-{}".format, (100,)), []),
        (lambda folder: scored(folder / "r.jsonl", 2, documents=30), []),
    ],
    ids=["checkpoints", "of several trainings", "without steps", "a single one", "models"],
)
def test_only_records_of_one_training_are_a_series(make, names, tmp_path):
    found = forecasts_of(compare(make(tmp_path)))
    assert [each.series.name for each in found] == names
    assert all(each.forecast.refused.startswith("2 points are too few") for each in found)


@pytest.mark.slow
def test_a_page_without_room_keeps_its_forecasts_in_words(history, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_pce.reports.html.LARGEST", 120_000)
    text = report(history, tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert "ce_p50: at step 20,000, 2 times the last, 2.2" in text
    assert len(text.encode()) < 120_000
