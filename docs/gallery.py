"""Makes the pictures of gallery.md by running its code: `python docs/gallery.py`.

With a page, `python docs/gallery.py demo_out/page.html`, it makes page.png instead, the picture of the front
page, of what the README's commands leave behind.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "gallery"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def blocks():
    """The code of the page, from top to bottom."""
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def photograph(page, target):
    """What of a page in HTML is seen first, in light colours."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1000, "height": 1264}, color_scheme="light")
        view.goto(page.resolve().as_uri())
        view.screenshot(path=target)
        browser.close()


def shrink(picture):
    """As few colours as these pictures need: a third of the bytes."""
    from PIL import Image

    Image.open(picture).convert("RGB").quantize(128).save(picture, optimize=True)


def make(folder):
    """Run the page's code in a folder and give the pictures that it has left there."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        names = {}
        for block in blocks():
            exec(block, names)
        for page in folder.glob("*.html"):
            photograph(page, folder / f"{page.stem}.png")
    finally:
        os.chdir(here)
    return sorted(folder.glob("*.png"))


def main(arguments):
    """Make the pictures."""
    if arguments:
        photograph(Path(arguments[0]), DOCS / "page.png")
        shrink(DOCS / "page.png")
        return
    with tempfile.TemporaryDirectory() as folder:
        PICTURES.mkdir(exist_ok=True)
        for picture in make(Path(folder)):
            shrink(picture)
            shutil.copy(picture, PICTURES / picture.name)
            print(PICTURES / picture.name)


if __name__ == "__main__":
    main(sys.argv[1:])
