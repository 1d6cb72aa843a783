"""Pictures: what words are drawn where, and how colours look to who sees fewer of them."""

from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

# Names that are hard to draw: mathematics, TeX, what a legend leaves out, several lines, long ones that
# differ in the middle, characters that cannot be printed.
LONG = "lr 1e-4, batch 512, {}, seed 3, the checkpoint after step 120000 of the second run"
NAMES = (
    "$x^{$",
    "$a_b$ 50%",
    "_hidden",
    "two\nlines",
    r"\frac{",
    LONG.format(1),
    LONG.format(2),
    "tab\t\udcff",
)


def pixels(figure):
    """``[height, width, 3]``, which draws it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def drawn_texts(figure):
    """All texts that are seen: not ticks outside the limits."""
    pixels(figure)
    unseen = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    unseen |= {tick.label1, tick.label2}
    texts = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in texts if text.get_text().strip() and text not in unseen]


def words_of(figure):
    return [text.get_text() for text in drawn_texts(figure)]


def crowded(figure):
    """Pairs of texts that overlap, and texts that are cut off; slanted ones lie beside one another."""
    texts = drawn_texts(figure)
    boxes = [text.get_window_extent() for text in texts]
    level = [i for i, text in enumerate(texts) if text.get_rotation() in (0, 90)]
    overlaps = [
        (texts[i].get_text(), texts[j].get_text())
        for i, j in combinations(level, 2)
        if boxes[i].x0 < boxes[j].x1 and boxes[j].x0 < boxes[i].x1
        if boxes[i].y0 < boxes[j].y1 and boxes[j].y0 < boxes[i].y1
    ]
    width, height = figure.canvas.get_width_height()
    cut = [
        text.get_text()
        for text, box in zip(texts, boxes, strict=True)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    return overlaps + cut


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISIONS = {
    "all three": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


def linear(color):
    """``#rrggbb`` as light."""
    part = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def lab(light):
    relative = TO_XYZ @ np.clip(light, 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def least_difference(colors):
    """Vision -> the least difference (CIE 1976) between two of these colours."""
    return {
        vision: min(
            float(np.linalg.norm(lab(matrix @ linear(a)) - lab(matrix @ linear(b))))
            for a, b in combinations(colors, 2)
        )
        for vision, matrix in VISIONS.items()
    }


def contrast_to_white(color):
    return 1.05 / (float(linear(color) @ TO_XYZ[1]) + 0.05)
