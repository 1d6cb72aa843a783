"""The page in a real Chromium: it asks for nothing, complains of nothing, and nothing runs off the side."""

import pytest

from lightning_pce.reports._words import visible
from lightning_pce.reports.html import report
from tests.helpers.browser import started_browser
from tests.helpers.scored_runs import HOSTILE, hostile, scored
from tests.helpers.series_runs import numbers, rising, with_digests

pytestmark = pytest.mark.slow
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
# The most different parts of a page: is the paper dark, and what is the contrast of words to it?
CONTRASTS = """() => {
    const light = color => {
        const parts = color.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05;
    };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const of = (selector, property) => [...document.querySelectorAll(selector)].map(each => {
        const ink = light(getComputedStyle(each)[property]);
        return Math.max(ink, paper) / Math.min(ink, paper);
    });
    return {paper, words: Math.min(...of("h1, p, th, td, small", "color")),
            drawn: Math.min(...of("svg text", "fill"))};
}"""


@pytest.fixture(scope="module")
def browser():
    with started_browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Paths of pages by name."""
    folder = tmp_path_factory.mktemp("pages")
    plain = scored(folder / "plain.jsonl", 6)
    words = hostile(0)
    strange = scored(
        folder / "strange.jsonl",
        3,
        model=lambda k: f"/models/{hostile(k)}",
        text=hostile,
        context=lambda i: hostile(i + 1),
        how={"masking": words, "notes": [words]},
        name=words,
        metadata={words: words},
        scalars=[{words: 0.1}, {words: 0.5}, {words: 0.2}],
    )
    run = with_digests(folder / "run.jsonl", numbers(), scalars={words: numbers(rising)})
    return {
        "plain": report(plain, folder / "plain.html"),
        "hostile": report(strange, folder / "strange.html", task=words),
        "one record": report(plain[:1], folder / "one.html"),
        "forecast": report(run, folder / "forecast.html", task=words),
    }


def opened(browser, path, **options):
    """The page, and what it asked for and complained about."""
    context = browser.new_context(**options)
    page, asked, said = context.new_page(), [], []
    context.set_default_timeout(60_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(path.as_uri())
    page.mouse.move(200, 300)
    return page, asked, said


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["plain", "hostile", "one record", "forecast"])
def test_it_opens_by_itself_in_light_and_dark_and_fits(browser, pages, name, scheme, size):
    page, asked, said = opened(browser, pages[name], color_scheme=scheme, viewport=size)
    assert asked == [pages[name].as_uri()]
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    seen = page.evaluate(CONTRASTS)
    assert (seen["paper"] > 0.5) == (scheme == "light")
    assert seen["words"] > 4.5
    assert seen["drawn"] > 4
    page.context.close()


def test_the_tables_of_values_fit_a_desk(browser, pages):
    page, _, _ = opened(browser, pages["plain"], viewport={"width": 1200, "height": 900})
    fits = "[...document.querySelectorAll('.scroll')].map(each => each.scrollWidth <= each.clientWidth)"
    assert all(page.evaluate(fits))
    page.context.close()


def test_hostile_words_are_seen_as_they_are(browser, pages):
    page, _, _ = opened(browser, pages["hostile"], viewport=DESK)
    words = page.evaluate("document.body.textContent")
    for each in HOSTILE:
        assert visible(each) in words
    drawn = page.evaluate("[...document.querySelectorAll('svg text')].map(each => each.textContent)")
    assert any("$x^{" in text for text in drawn)
    assert any("<script>" in text for text in drawn)
    assert page.evaluate("document.scripts.length + document.querySelectorAll('h1').length") == 1
    assert page.title() == page.evaluate("document.querySelector('h1').textContent")
    page.context.close()


def test_a_printed_page_is_light_and_as_wide_as_paper(browser, pages):
    page, _, _ = opened(browser, pages["plain"], color_scheme="dark", viewport={"width": 690, "height": 990})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    assert page.evaluate(CONTRASTS)["paper"] > 0.5
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.context.close()


def test_pictures_are_told_in_words(browser, pages):
    page, _, _ = opened(browser, pages["plain"], viewport=DESK)
    assert page.get_by_role("img").count() == 2
    assert page.get_by_role("img", name="of the percentiles are lower").count() == 1
    page.context.close()
