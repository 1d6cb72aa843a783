"""The page: it says what the comparison says, loads nothing, and shows the words of strangers as words."""

import json
import os
import re
import warnings

import matplotlib
import pytest

from lightning_pce._errors import UserError
from lightning_pce.reports import _drawing
from lightning_pce.reports import _sections as sections
from lightning_pce.reports._svg import on_dark
from lightning_pce.reports._words import visible
from lightning_pce.reports.html import LARGEST, report
from lightning_pce.runs._words import number
from lightning_pce.runs.comparison import compare
from lightning_pce.runs.history import History
from tests.helpers import checkpoint_runs
from tests.helpers.html_pages import Page
from tests.helpers.pictures import TO_XYZ, linear
from tests.helpers.scored_runs import HOSTILE, hostile, scored

TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "main", "article", "header", "footer"),
    *("p", "h1", "h2", "h3", "div", "figure", "figcaption", "table", "thead", "tbody", "tr", "th", "td"),
    *("small", "span", "details", "summary", "ol", "li", "mark"),
    *("svg", "g", "path", "defs", "use", "text", "tspan", "clippath", "rect"),
}


def page_of(history, tmp_path, **options):
    path = report(history, tmp_path / "page.html", **options)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("records") / "records.jsonl", 6)


@pytest.fixture(scope="module")
def written(history, tmp_path_factory):
    """A page with all that it can show, as text, and what a browser sees of it."""
    folder = tmp_path_factory.mktemp("page")
    task = {record.label: 0.1 * k for k, record in enumerate(history)}
    text, page = page_of(history, folder, task=task)
    return text, page, json.loads((folder / "page.json").read_text(encoding="utf-8"))


def test_the_page_says_what_the_comparison_says(history, written):
    _, page, plain = written
    found = compare(history, task={record.label: 0.1 * k for k, record in enumerate(history)})
    compared = found.to_plain() | {"forecasts": []}  # of records without steps
    assert plain == {"schema": 1, "agree": found.agree, "comparisons": [compared]}
    assert "Forecast" not in page.words
    kept = found.verdict.shortlist
    [headline] = [text for tag, text in page.texts if tag == "h1"]
    assert headline == (f"Keep {kept[0]}" if found.verdict.agree else f"Shortlist: {' or '.join(kept)}")
    for sentence in found.verdict.sentences:
        assert sentence in page.words or sentence.startswith("Shortlist: ")
    for values in (found.values, found.differences):
        for of_record in values.values():
            for each in of_record.values():
                assert number(each.value) in page.words
                assert f"{number(each.high)}" in page.words
    changes = [each for of_record in found.differences.values() for each in of_record.values()]
    kinds = page.attributes("class")
    assert kinds.count("lower") == sum(each.high < 0 for each in changes) > 0
    assert kinds.count("higher") == sum(each.low > 0 for each in changes) > 0
    assert kinds.count("best") == len(found.table.rows)
    assert kinds.count("tie") == sum(len(row.ties) - 1 for row in found.table.rows)
    drawn = [text for tag, text in page.texts if tag == "text" and text.startswith("step-")]
    assert " ".join(record.label for record in history) in " ".join(drawn)
    for row in found.table.rows:
        assert f"{row.pearson:+.2f}" in page.words
    for record in history:
        assert record.how["model"] in page.words


def test_the_tail_stands_in_its_text(history, written):
    _, page, plain = written
    [record] = [each for each in history if each.label == plain["comparisons"][0]["shortlist"][0]]
    first_of_each = [
        token
        for place, token in enumerate(record.tail)
        if sum(other.label == token.label for other in record.tail[:place]) < 3
    ][:20]
    for token in first_of_each:
        assert token.context in page.words
        assert number(token.ce) in page.words
        assert f"document {token.document}, position {token.position}" in page.words
    marks = [text for tag, text in page.texts if tag == "mark"]
    assert marks[: len(first_of_each)] == [visible(token.text) for token in first_of_each]
    often = sum(token.label == record.tail[0].label for token in record.tail)
    assert f"{often} of these tokens have this label" in page.words


def test_nothing_is_loaded_and_nothing_runs(written):
    text, page, _ = written
    assert page.tags() <= TAGS
    assert set(page.attributes("href")) - {"data:,"} <= {f"#{name}" for name in page.attributes("id")}
    assert not page.attributes("src")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert not re.search(r"@import|https?:", text)
    assert "default-src 'none'" in text


def test_ids_are_those_of_one_picture_and_colours_follow_the_page(written):
    text, page, _ = written
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) > 20
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert [each["role"] for each in pictures] == ["img", "img"]
    assert "mean 0.460 at step-1" in pictures[0]["aria-label"]
    assert "of the percentiles are lower" in pictures[1]["aria-label"]
    styles = [attributes["style"] for _, attributes in page.elements if "style" in attributes]
    assert not [style for style in styles if re.search("#[0-9a-f]{6}", style)]
    used = set(re.findall(r"var\((--c-\w+)\)", text))
    for name in used:
        assert len(re.findall(f"{name}: #", text)) == 2  # light and dark
    assert len(used) > 8


def contrast(color, paper):
    light, dark = (float(linear(each) @ TO_XYZ[1]) + 0.05 for each in (color, paper))
    return max(light, dark) / min(light, dark)


def test_colours_can_be_seen_on_a_dark_page():
    paper = on_dark("ffffff")
    texts = ("#000000", "#222222", "#444444", _drawing.QUIET, _drawing.BETTER, _drawing.WORSE)
    assert min(contrast(on_dark(color[1:]), paper) for color in texts) > 4.5
    assert min(contrast(on_dark(color[1:]), paper) for color in (*_drawing.CURVES, _drawing.BAND)) > 5
    greys = [contrast(on_dark(f"{level:02x}" * 3), paper) for level in range(0, 256, 15)]
    assert greys == sorted(greys, reverse=True)
    assert on_dark("767676") != on_dark("9a9a9a") != "#9a9a9a"


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """A page of records in which every name and text is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    words = hostile(0)
    history = scored(
        folder / "records.jsonl",
        3,
        model=lambda k: f"/models/{hostile(k)}",
        text=hostile,
        context=lambda i: hostile(i + 1),
        how={"masking": words, words: words, "notes": [words]},
        name=words,
        metadata={words: words},
        scalars=[{words: 0.1}, {words: 0.5}, {words: 0.2}],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # as matplotlib's of characters that its font lacks
        return page_of(history, folder, task=words)


def test_hostile_words_are_seen_as_words(strange):
    text, page = strange
    assert page.tags() <= TAGS
    assert text.count("<h1>") == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for each in HOSTILE:
        assert visible(each)[:30] in page.words
    contexts = [words for tag, words in page.texts if tag == "span" and words.startswith("…")]
    assert {len(words) > 390 for words in contexts} == {True}
    assert any(words.endswith(visible(hostile(3))[-40:]) for words in contexts)
    svg = text[text.index("<svg") : text.index("</svg>")]
    assert "&lt;script&gt;" in svg
    assert "$x^{" in svg
    assert all(char.isprintable() or char in "\n\u200c\u200d" for char in text)


def test_a_character_that_cannot_be_seen_is_written_out():
    assert visible("a\x00\u202e\ud800\ue000\r") == r"a\x00\u202e\ud800\ue000\r"
    assert visible("\n\t") == "⏎⇥"
    assert visible("👩‍👩‍👧 漢字　かな é\xa0x") == "👩‍👩‍👧 漢字　かな é\xa0x"


def without_places(text):
    """Old versions of matplotlib lay a figure out in one of two ways; ids are hashes of places."""
    return re.sub(r'(?<= )(d|x|y|transform|viewBox|id|href|clip-path)="[^"]*"', r"\1", text)


def test_the_same_records_give_the_same_page_whatever_matplotlib_is_set_to(history, written, tmp_path):
    task = {record.label: 0.1 * k for k, record in enumerate(history)}
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            again, _ = page_of(history, tmp_path, task=task)
        assert dict(matplotlib.rcParams) == before
    assert without_places(again) == without_places(written[0])
    assert len(without_places(again)) > 40_000
    assert sorted(os.listdir(tmp_path)) == ["page.html", "page.json"]


def plain_run(tmp_path, **more):
    return scored(tmp_path / "records.jsonl", 2, **more)


def other_tokens(tmp_path):
    scored(tmp_path / "records.jsonl", 1)
    return scored(
        tmp_path / "records.jsonl",
        1,
        curve=checkpoint_runs.agreeing,
        model=lambda k: "other",
        how={"tokenizer": "ffff", "token_ids": "eeee"},
    )


def torn(tmp_path):
    path = tmp_path / "records.jsonl"
    scored(path, 2, text=lambda i: None, context=lambda i: None, label_texts={})
    with path.open("ab") as file:
        file.write(b'{"kind":"validation","schema":1,"run":"x"')
    return History.load(path)


MISSING = {
    "one record": (lambda path: scored(path / "records.jsonl", 1), ["One record", "nothing has moved"]),
    "nothing but digests": (
        lambda path: plain_run(path, documents_kept=False, label_totals={}, tail=()),
        [
            "Lowest, without error bars: step-",
            "score it again",
            "keep no totals of labels",
            "keeps no tail",
            "evaluate",
        ],
    ),
    "no texts, a torn line": (torn, ["--no-text", "token 3", "1 torn line skipped", "a writer was killed"]),
    "another tokenizer": (other_tokens, ["bits per byte", "none of records of other tokenizers"]),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_said_in_a_line(case, tmp_path):
    make, words = MISSING[case]
    _, page = page_of(make(tmp_path), tmp_path)
    for each in words:
        assert each in page.words
    assert "nan" not in page.words
    assert page.tags() <= TAGS


def test_text_is_left_out_of_page_and_json(history, tmp_path):
    text, page = page_of(history, tmp_path, text=False)
    whole = text + (tmp_path / "page.json").read_text(encoding="utf-8")
    assert "The capital city" not in whole
    assert " Answer" not in whole
    assert "no-text" in page.words
    assert "token 3" in page.words


def test_known_steps_are_the_axis(tmp_path):
    for k in range(3):
        history = scored(tmp_path / "records.jsonl", 1, model=lambda _, k=k: f"m{k}", step=100 * k)
    _, page = page_of(history, tmp_path)
    assert "step" in [text for tag, text in page.texts if tag == "text"]
    assert "record" not in [text for tag, text in page.texts if tag == "text"]


@pytest.mark.slow
def test_many_records_of_many_data_sets_make_a_small_page(tmp_path):
    for name in "abc":
        history = scored(
            tmp_path / "records.jsonl",
            70,
            documents=30,
            name=f"loader_{name}",
            model=lambda k: f"run/checkpoint-{k:03}-" + "x" * 60,
            text=hostile,
            context=lambda i: hostile(i) * 4,
            how={"data": name, "token_ids": name},
        )
    text, page = page_of(history, tmp_path)
    assert len(text.encode()) < LARGEST
    assert text.count("<h1>") == 3
    assert re.search(r"5\d of 70 records have a row", page.words)
    assert len(json.loads((tmp_path / "page.json").read_text())["comparisons"]) == 3


def test_a_page_without_room_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_pce.reports.html.LARGEST", 1000)
    scored(tmp_path / "records.jsonl", 1, name="a")
    both = scored(tmp_path / "records.jsonl", 1, name="b", how={"data": "b", "token_ids": "b"}, documents=90)
    _, page = page_of(both, tmp_path)
    assert page.words.count("left out: a page has at most 500 KB") == 1


REFUSED = {
    "a folder": (".", "is a folder"),
    "its parent is a file": ("records.jsonl/page.html", "is a file and no folder"),
    "no regular file": (os.devnull, "is no regular file"),
    "the records": ("records.jsonl", "holds the records"),
    "the JSON": ("page.json", "name the page page.html"),
    "the JSON is a folder": ("taken.html", "is a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_a_line_and_nothing_written(case, tmp_path):
    target, words = REFUSED[case]
    history = plain_run(tmp_path)
    (tmp_path / "taken.json").mkdir()
    before = sorted(os.listdir(tmp_path)), (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(UserError, match=words) as error:
        report(history, tmp_path / target)
    assert "\n" not in str(error.value)
    assert (sorted(os.listdir(tmp_path)), (tmp_path / "records.jsonl").read_bytes()) == before


def test_an_older_page_stays_if_the_new_one_cannot_be_written(tmp_path):
    history = plain_run(tmp_path)
    page = report(history[1:], tmp_path / "page.html")
    before = page.read_bytes()
    # A name that is a file already, made a folder: as a disk that takes no more, this works for root too.
    (tmp_path / f".page.json.{os.getpid()}.tmp").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        report(history[:1], page)
    assert page.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [
        f".page.json.{os.getpid()}.tmp",
        "page.html",
        "page.json",
        "records.jsonl",
    ]


def test_no_records_are_refused(tmp_path):
    with pytest.raises(UserError, match="no records"):
        report(History([]), tmp_path / "page.html")
    assert os.listdir(tmp_path) == []


def test_folders_are_made_and_links_followed(history, tmp_path):
    page = report(history[:1], tmp_path / "a" / "b" / "page.html")
    assert page == tmp_path / "a" / "b" / "page.html"
    before = page.read_bytes()
    page.write_text("old")
    link = tmp_path / "link.html"
    link.symlink_to(page)
    report(history[:1], link)
    assert link.is_symlink()
    assert page.read_bytes() == before


def test_what_the_verdict_says_is_not_said_again_below(tmp_path):
    found = compare(scored(tmp_path / "r.jsonl", 3, documents=30))
    said = [each for each in sections.sentences(found) if "Error bars are rough" in each]
    assert len(said) == 1
    assert said[0] not in sections.notes(found)
