"""A figure as SVG inside of a page: its own ids, text as text, colours that a dark page can change."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_COLOR = re.compile(r"#([0-9a-fA-F]{6})\b")
_NUMBERS = ("d", "x", "y", "transform", "points")
_FONT = "DejaVu Sans"  # which matplotlib brings: a place where it measures words the same everywhere
_DARK_PAPER = 0.20  # lightness of what is white on a light page


def own_settings() -> AbstractContextManager[object]:
    """Matplotlib's own settings, whatever the user's are, and silence on characters that its font lacks.

    A browser has them. The settings are global: no other thread should draw meanwhile.
    """
    import matplotlib

    stack = ExitStack()
    stack.enter_context(matplotlib.rc_context())
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", message=r"Glyph \d+")
    matplotlib.rcdefaults()
    matplotlib.rcParams.update({"font.sans-serif": [_FONT], "svg.fonttype": "none"})
    return stack


def svg_of(draw: Callable[[], Figure], prefix: str, words: str) -> str:
    """An ``<svg>`` element; its colours are variables that :func:`palette` sets.

    Args:
        draw: makes the figure, under matplotlib's own settings.
        prefix: what its ids begin with, another one for each picture of a page.
        words: what it shows, for who does not see it.
    """
    import matplotlib

    text = io.StringIO()
    with own_settings():
        matplotlib.rcParams["svg.hashsalt"] = prefix  # else ids are random
        figure = draw()
        for patch in (figure.patch, *(ax.patch for ax in figure.axes)):
            patch.set_visible(False)  # the page's own background
        figure.savefig(text, format="svg")
    root = ElementTree.fromstring(text.getvalue())  # noqa: S314 - matplotlib has just written it
    for parent in list(root.iter()):
        # Metadata has the date, the style is for all of the page.
        for child in [each for each in parent if each.tag in (f"{_SVG}metadata", f"{_SVG}style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        attributes = {name.removeprefix(_XLINK): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _attribute(name, value, prefix) for name, value in attributes.items()})
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": words})
    return ElementTree.tostring(root, encoding="unicode")


def palette(pictures: Iterable[str]) -> list[tuple[str, str, str]]:
    """The variables that the colours of pictures are: name, value on a light page, value on a dark one."""
    found = sorted({name for picture in pictures for name in re.findall(r"var\(--c-(\w{6})\)", picture)})
    return [(f"--c-{name}", f"#{name}", on_dark(name)) for name in found]


def on_dark(color: str) -> str:
    """A colour ``"rrggbb"`` for a dark page: the opposite grey, or the same hue and the darker the lighter.

    Example:
        >>> on_dark("000000"), on_dark("ffffff"), on_dark("013a63")
        ('#e8e8e8', '#161616', '#b8dbfc')
    """
    lightness, a, b = _to_oklab(color)
    if math.hypot(a, b) < 0.02:
        # The power keeps grey text readable.
        return _from_oklab(0.93 - (0.93 - _DARK_PAPER) * lightness**1.6, 0.0, 0.0)
    return _from_oklab(1.08 - 0.6 * lightness, a, b)


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return f"#{prefix}-{value.removeprefix('#')}"
    if name == "clip-path":
        return value.replace("url(#", f"url(#{prefix}-")
    if name == "style":
        return _COLOR.sub(lambda match: f"var(--c-{match[1].lower()})", value.replace(f"'{_FONT}', ", ""))
    if name in _NUMBERS:
        return re.sub(r"(\.\d\d)\d+", r"\1", value).replace("\n", " ").strip()
    return value


# Oklab by Björn Ottosson (2020): lightness that looks even, hue that stays when lightness changes.
def _to_oklab(color: str) -> tuple[float, float, float]:
    parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    medium = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


def _from_oklab(lightness: float, a: float, b: float) -> str:
    """``"#rrggbb"``; what no screen can show becomes paler."""
    for _ in range(20):
        long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        light = (
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        )
        if all(-1e-3 <= x <= 1 + 1e-3 for x in light):
            break
        a, b = 0.9 * a, 0.9 * b
    parts = (min(max(x, 0.0), 1.0) for x in light)
    bytes_of = (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055 for x in parts)
    return "#" + "".join(f"{round(255 * x):02x}" for x in bytes_of)
