"""The site as it is built: its links, its reference, and what a reader sees and finds in a browser.

Needs the extra ``docs``.
"""

import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.helpers.browser import started_browser

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site that was built as `make docs` does; CI has just done so and names it."""
    if "SITE" in os.environ:
        return ROOT / os.environ["SITE"]
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    options = [
        "--quiet",
        "--fail-on-warning",
        "--conf-dir",
        "docs",
        "--doctree-dir",
        str(folder / "doctrees"),
    ]
    command = [sys.executable, "-m", "sphinx", *options, ".", str(folder / "html")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    return folder / "html"


class Links(HTMLParser):
    """Where a page leads, and the anchors in it."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors = [], {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.targets += [found[name] for name in ("href", "src") if found.get(name)]


def test_nothing_inside_the_site_leads_nowhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html")}
    inside = 0
    for path, page in pages.items():
        for target in page.targets:
            if urlsplit(target).scheme:
                continue
            name, anchor = urldefrag(target)
            there = (path.parent / unquote(urlsplit(name).path)).resolve() if name else path
            assert there.is_file(), f"{path.relative_to(site)}: {target}"
            if there in pages:
                assert unquote(anchor) in pages[there].anchors, f"{path.relative_to(site)}: {target}"
            inside += 1
    assert inside > 2000
    assert len(pages) > 40


def test_what_leads_outside_are_pages_of_others(site):
    outside = {target for path in site.rglob("*.html") for target in Links(path).targets if "//" in target}
    assert {urlsplit(target).scheme for target in outside} == {"https"}
    assert any("docs.pytorch.org" in target for target in outside)  # from the small inventories


def test_every_public_name_and_every_subcommand_has_a_place(site):
    from lightning_pce.cli._app import app
    from tests.project.test_docs_site import public_names

    pages = {path: Links(path).anchors for path in (site / "docs/reference").glob("*.html")}
    anchors = [anchor for found in pages.values() for anchor in found]
    for path, _ in public_names.described().values():
        assert anchors.count(path) == 1, path
    assert "lightning_pce.PercentileCrossEntropy.update" in anchors
    assert "lightning_pce.PercentileCrossEntropy.state_dict" not in anchors  # torch's
    commands = [command.name for command in app().registered_commands]
    assert {"evaluate", "compare"} <= set(commands)
    assert {name.strip("_") for name in commands} <= pages[site / "docs/reference/command_line.html"]


@pytest.fixture(scope="module")
def address(site):
    """The site on a port of this machine: its search asks for files, which pages of a file system may not."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(scope="module")
def browser(address):
    with started_browser() as started:
        yield started


@pytest.mark.parametrize("word", ["median", "ModelCheckpoint", "DDP"])
def test_the_search_finds(browser, address, word):
    page = browser.new_page(viewport=DESK)
    page.set_default_timeout(60_000)
    page.goto(f"{address}/docs/index.html")
    page.get_by_placeholder("Search").fill(word)
    page.keyboard.press("Enter")
    # The page asks for each page found and shows its lines when they come: titles alone do not hold the word.
    page.locator("ul.search", has_text=re.compile(word, re.IGNORECASE)).wait_for()
    assert page.locator("ul.search li").count() >= 2
    page.locator("ul.search li a").first.click()
    assert "/search.html" not in page.url
    page.close()


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_and_asks_for_nothing_outside(browser, address, site, scheme, size):
    context = browser.new_context(color_scheme=scheme, viewport=size)
    page, asked, said, missing = context.new_page(), [], [], []
    page.set_default_timeout(60_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: missing.extend([response.url] * (response.status >= 400)))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{address}/")
    page.wait_for_url("**/docs/index.html")
    for path in sorted({*site.rglob("*.html")} - {site / "index.html"}):
        name = path.relative_to(site).as_posix()
        page.goto(f"{address}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], name
        broken = (
            "[...document.images].filter(each => each.complete && !each.naturalWidth).map(each => each.src)"
        )
        assert page.evaluate(broken) == [], name
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128")
    assert dark == (scheme == "dark")
    assert missing == []
    assert said == []
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    context.close()
