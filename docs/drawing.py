"""The eight steps as one drawing, of a run's own images, losses and scores; `images.py` calls it.

The drawing is SVG with the variables of the pages' style sheet, so that on the site it has the colors of the page. Each
cell is drawn in a box of CELL units and placed by `drawn`: eight in a row, or two in a row for a phone.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

CELL, GAP, TEXT, TOP = (
    124,
    18,
    58,
    34,
)  # width of a cell, between cells, height of the words below it and of those above
PATCH = 34  # side of an image
NAMES = ["data", "views", "encoder", "head", "loss", "pretraining", "evaluation", "use"]
ANCHORS = ["data", "views", "encoder", "projection-head", "contrastive-loss", "pretraining", "evaluation", "use"]
WORDS = [
    ("your images,", "without labels"),
    ("two random views", "of each image"),
    ("view →", "representation h"),
    ("h → projection z", ""),
    ("the two views agree,", "the others do not"),
    ("repeat:", "the loss falls"),
    ("head off,", "linear layer on"),
    ("search, label,", "classify, export"),
]
STYLE = """
.steps text { font: 13px var(--sans, system-ui, sans-serif); fill: var(--ink, #16181d); text-anchor: middle; }
.steps .name { font-weight: 600; font-size: 14px; }
.steps .words, .steps .small { fill: var(--muted, #565c66); font-size: 12px; }
.steps .small { font-size: 11px; text-anchor: start; }
.steps .band { fill: var(--soft, #f4f5f7); }
.steps .line { fill: none; stroke: var(--muted, #565c66); stroke-width: 1.5; }
.steps .box { fill: var(--paper, #fff); stroke: var(--ink, #16181d); stroke-width: 1.5; }
.steps .first { fill: none; stroke: var(--accent, #1d4ed8); stroke-width: 3; }
.steps .second { fill: none; stroke: var(--second, #b8440c); stroke-width: 3; }
.steps .bar { fill: var(--accent, #1d4ed8); }
.steps .other { fill: var(--muted, #565c66); opacity: .55; }
.steps image { image-rendering: pixelated; }
.steps a { text-decoration: none; }
"""


@dataclass(frozen=True)
class Shown:
    """What the drawing shows: uint8 images `[n, 3, S, S]`, the numbers of a run, and the methods with their scores."""

    images: Tensor  # nine
    views: Tensor  # an image, and its two views
    cosines: Tensor  # [6, 6], of the projections of three images: first their first views, then their second ones
    losses: Sequence[float]
    scores: Sequence[tuple[str, float]]
    neighbors: Tensor  # a query, and its six nearest


def drawn(shown: Shown, columns: int) -> str:
    """The drawing with this many cells in a row, as SVG."""
    cells = [
        _images(shown.images),
        _views(shown.views),
        _network("f", 12, 30),
        _network("g", 32, 44, dashed=True),
        _similarity(shown.cosines),
        _curve(shown.losses),
        _bars(shown.scores),
        _neighbors(shown.neighbors),
    ]
    row, wide = TOP + CELL + TEXT, columns * (CELL + GAP)
    parts = [_bands(columns, row)]
    for step, (cell, words) in enumerate(zip(cells, WORDS, strict=True)):
        x, y = (step % columns) * (CELL + GAP) + GAP / 2, (step // columns) * row
        link = f"walk.html#step-{step + 1}-{ANCHORS[step]}"
        parts.append(f'<a href="{link}"><g transform="translate({x:g} {y + TOP})">{cell}')
        parts.append(f'<text class="name" x="{CELL / 2}" y="{CELL + 18}">{step + 1} {NAMES[step]}</text>')
        for line, text in enumerate(words):
            parts.append(f'<text class="words" x="{CELL / 2}" y="{CELL + 35 + 15 * line}">{text}</text>')
        parts.append("</g></a>")
        if step < len(cells) - 1 and (step + 1) % columns:
            parts.append(_arrow(x + CELL + 2, y + TOP + CELL / 2, x + CELL + GAP - 2, y + TOP + CELL / 2))
    high = row * -(-len(cells) // columns)
    inside = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="steps" viewBox="0 0 {wide} {high}">'
    return f"{head}\n<style>{STYLE}</style>\n{inside}\n</svg>\n"


def _bands(columns: int, row: int) -> str:
    """Backgrounds that say what needs labels: steps 1 to 6 in one, and one each for the others."""
    last = len(NAMES) // columns - 1  # the row of steps 7 and 8
    bands = [  # first column, columns, first row, rows, words
        (0, min(6, columns), 0, max(1, last), "pretraining: no labels"),
        (columns - 2, 1, last, 1, "a few labels"),
        (columns - 1, 1, last, 1, "no labels"),
    ]
    parts = []
    for column, width, top, height, words in bands:
        x, y = column * (CELL + GAP) + 3, top * row + 3
        w, h = width * (CELL + GAP) - 6, height * row - 6
        parts.append(f'<rect class="band" x="{x}" y="{y}" width="{w}" height="{h}" rx="6"/>')
        parts.append(f'<text class="words" x="{x + w / 2:g}" y="{y + 19}">{words}</text>')
    return "\n".join(parts)


def _images(images: Tensor) -> str:
    step = PATCH + 4
    start = (CELL - 3 * step + 4) / 2
    return "".join(_image(image, start + i % 3 * step, start + i // 3 * step) for i, image in enumerate(images))


def _views(views: Tensor) -> str:
    middle = CELL / 2
    parts = [_image(views[0], 0, middle - PATCH / 2)]
    for view, kind, y in ((views[1], "first", 4), (views[2], "second", CELL - 54)):
        parts.append(_image(view, CELL - 52, y, 50))
        parts.append(f'<rect class="{kind}" x="{CELL - 52}" y="{y}" width="50" height="50"/>')
        parts.append(_arrow(PATCH + 3, middle, CELL - 56, y + 25))
    return "".join(parts)


def _network(letter: str, left: float, right: float, dashed: bool = False) -> str:
    """A trapezoid that narrows from `left` to `right` units below the top."""
    style = ' stroke-dasharray="5 4"' if dashed else ""
    points = f"14,{left} {CELL - 14},{right} {CELL - 14},{CELL - right} 14,{CELL - left}"
    text = f'<text x="{CELL / 2}" y="{CELL / 2 + 6}" style="font-style: italic; font-size: 20px">{letter}</text>'
    return f'<polygon class="box" points="{points}"{style}/>{text}'


def _similarity(cosines: Tensor) -> str:
    side = 19
    start = (CELL - side * len(cosines)) / 2
    parts = []
    for i, row in enumerate(cosines.tolist()):
        for j, cosine in enumerate(row):
            opacity = 0 if i == j else max(0.06, cosine)
            place = f'x="{start + j * side:g}" y="{start + i * side:g}"'
            parts.append(f'<rect class="bar" {place} width="{side - 2}" height="{side - 2}" opacity="{opacity:.2f}"/>')
    return "".join(parts)


def _curve(losses: Sequence[float]) -> str:
    low, high = min(losses), max(losses)
    points = []
    for place, loss in enumerate(losses):
        x = 10 + (CELL - 20) * place / (len(losses) - 1)
        y = 14 + (CELL - 32) * (high - loss) / (high - low)
        points.append(f"{x:.1f},{y:.1f}")
    axes = f'<path class="line" d="M10 8V{CELL - 12}H{CELL - 8}"/>'
    return f'{axes}<polyline class="first" points="{" ".join(points)}"/>'


def _bars(scores: Sequence[tuple[str, float]]) -> str:
    """One bar for each method, as long as its score; the last one is SimCLR's."""
    parts = []
    for place, (method, score) in enumerate(scores):
        y = 10 + place * 36
        kind = "bar" if place == len(scores) - 1 else "other"
        parts.append(f'<text class="small" x="4" y="{y + 8}">{method} {100 * score:.0f} %</text>')
        parts.append(f'<rect class="{kind}" x="4" y="{y + 13}" width="{(CELL - 8) * score:.1f}" height="10"/>')
    return "".join(parts)


def _neighbors(images: Tensor) -> str:
    parts = [
        _image(images[0], 0, CELL / 2 - PATCH / 2),
        f'<rect class="first" x="0" y="{CELL / 2 - PATCH / 2}" width="{PATCH}" height="{PATCH}"/>',
        _arrow(PATCH + 3, CELL / 2, PATCH + 14, CELL / 2),
    ]
    step = PATCH + 4
    for place, image in enumerate(images[1:]):
        parts.append(_image(image, CELL - 2 * step + 4 + place % 2 * step, 5 + place // 2 * step))
    return "".join(parts)


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    head = f"M{to_x - 5:g} {to_y - 4:g}L{to_x:g} {to_y:g}L{to_x - 5:g} {to_y + 4:g}"
    return f'<path class="line" d="M{x:g} {y:g}L{to_x:g} {to_y:g}{head}"/>'


def _image(image: Tensor, x: float, y: float, side: int = PATCH) -> str:
    stored = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L").save(stored, "png", optimize=True)
    data = base64.b64encode(stored.getvalue()).decode()
    return f'<image href="data:image/png;base64,{data}" x="{x:g}" y="{y:g}" width="{side}" height="{side}"/>'
