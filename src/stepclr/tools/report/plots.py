"""The charts of a page: inline SVG in the colors of style.css, words that describe each, and its numbers as a table.

An SVG is as wide as its place on the page: positions in it are percentages, letters and lines keep their size.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from stepclr.data.order import spread
from stepclr.evaluation.results import Scores
from stepclr.metrics import in_percent, whole_percent
from stepclr.tools.images import data_uri, page_uri
from stepclr.tools.label_chart import label_curves
from stepclr.tools.methods import TONES, tone_of
from stepclr.tools.notes import start_words
from stepclr.tools.pages import lines_of
from stepclr.tools.scores import percent

Json = dict[str, Any]
Words = Callable[[float], str]  # a number as a reader sees it
MAX_ROWS = 12  # of the table under a line
MAX_POINTS = 300  # of a line
MAX_CLASSES = 20  # of a confusion matrix with numbers in its cells
COLUMNS, ROWS = 36, 20  # of the map: each cell shows one image
TILE_PX = 64  # long side of an image on the map
LINE_HEIGHT, NAME_GAP = 0.042, 0.013  # of a chart's height: a line of a name in it, and the space between two names
POSITIVE, NEGATIVE = (59, 123, 234), (224, 106, 44)  # of a matrix, on light and on dark paper; more opaque is more
NAME_WIDTH = 21  # letters in a line of the name of a curve
LEADER_PX, LINE_EM = 16, 1.3  # from a curve to its name; from one line of a name to the next
SHADES = 10  # of a cell of a confusion matrix


@dataclass(frozen=True)
class Plot:
    """A chart: `svg` draws it, and `words` describe it to readers who cannot see it.

    `hover` is what the page shows next to a matrix for a place in it: {"values"} in thousandths, and {"captions"} of
    rows and columns that are not the views of the page's batch.
    """

    title: str
    words: str
    svg: Markup
    kind: str = "lines"
    header: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    hover: Json = field(default_factory=dict)


class Bar(NamedTuple):
    """A row of a bar chart: `share` (0 to 1) is the length, `low` and `high` the ends of a whisker."""

    name: str
    share: float
    text: str
    tone: int = 0
    low: float = 0
    high: float = 0
    note: str = ""


class Curve(NamedTuple):
    """A line through points, with the standard deviation of each (0: none), in a color of style.css."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    std: Sequence[float]
    tone: int = 0


class Axis(NamedTuple):
    """A scale from `low` to `high` with its ticks and their names."""

    low: float
    high: float
    ticks: list[tuple[float, str]]
    log: bool = False

    def place(self, value: float | int) -> float:
        """Where a value is on the axis, 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def line(title: str, x: Sequence[float], y: Sequence[float], unit: str, note: str = "", share: bool = False) -> Plot:
    """One logged quantity over the epochs; shares are shown in percent."""
    shown: Words = in_percent if share else "{:.4g}".format
    words = (
        f"{title} over {x[-1]:g} epochs: {shown(y[0])} at first, {shown(y[-1])} at last, "
        f"between {shown(min(y))} and {shown(max(y))}."
    )
    kept = spread(len(x), MAX_POINTS)
    curve = Curve("", [x[k] for k in kept], [y[k] for k in kept], [0.0] * len(kept))
    across = _linear(min(0.0, x[0]), x[-1])
    up = _linear(min(y), max(y), share)
    svg = _svg("lines", f"{title}. {words}", _frame(across, up, "epoch"), _curve(curve, across, up, marks=False),
               _end(curve, across, up, shown(y[-1])))  # fmt: skip
    rows = [(f"{x[k]:.2f}", shown(y[k])) for k in spread(len(x), MAX_ROWS)]
    return Plot(title, note or words, svg, "lines", ("epoch", f"{title}, {unit}"), rows)


def label_budget(scores: Scores) -> Plot:
    """Top-1 of each method against the number of labels, with the standard deviation over the draws."""
    curves = []
    for method, points in label_curves(scores).items():
        x, mean, std = zip(*points, strict=True)
        curves.append(Curve(method, x, mean, std, tone_of(method, scores)))
    order = list(dict.fromkeys(row.method for row in scores.rows))
    rows = sorted(scores.rows, key=lambda row: order.index(row.method))
    best = max(scores.rows, key=lambda row: row.mean)
    words = (
        f"Top-1 by labels per class, one line per method; the highest is {best.method} with "
        f"{best.labels_per_class} labels: {percent(best)}. {start_words(scores)}"
    )
    places = sorted({x for curve in curves for x in curve.x})
    low, high = places[0], max(places[-1], 1.01 * places[0])
    names = {x: f"{x:,.4g}" for x in places}
    if any(row.labels_per_class == "all" for row in scores.rows):
        names[places[-1]] = f"all ({names[places[-1]]})"
    budgets = Axis(low, high, list(names.items()), log=True)
    lowest = min(y - std for curve in curves for y, std in zip(curve.y, curve.std, strict=True))
    highest = max(y + std for curve in curves for y, std in zip(curve.y, curve.std, strict=True))
    up = _linear(max(0.0, lowest), min(1.0, highest), share=True)
    svg = _svg("budget", f"Label budget. {words}", _frame(budgets, up, "labels per class (log scale)"),
               *(_curve(curve, budgets, up) for curve in curves), _names(curves, budgets, up))  # fmt: skip
    table = [(row.method, row.labels_per_class, percent(row)) for row in rows]
    header = ("method", "labels per class", "top-1, ± std over draws")
    return Plot("Label budget", words, svg, "budget", header, table)


def method_bars(scores: Scores) -> list[Bar]:
    """Top-1 of each method with the one number of labels that there is, the highest first."""
    bars = []
    for row in sorted(scores.rows, key=lambda row: -row.mean):
        std = row.std or 0.0
        tone = tone_of(row.method, scores)
        bars.append(Bar(row.method, row.mean, percent(row), tone, row.mean - std, row.mean + std))
    return bars


def similarities(title: str, words: str, cosine: Float[np.ndarray, "m m"]) -> Plot:
    """The cosine of every two projections of a batch, whose images the page has."""
    hover = {"values": np.round(1000 * cosine).astype(int).tolist()}
    return Plot(title, words, _matrix(f"{title}. {words}", cosine), "matrix", hover=hover)


def confusion(title: str, classes: Sequence[str], matrix: Int[np.ndarray, "c c"]) -> Plot:
    """How often images of one class (rows) were taken for another (columns), as shares of the row."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    right, scored = np.diag(share), np.flatnonzero(matrix.sum(1))  # nothing is known of a class without an image
    best, worst = scored[right[scored].argmax()], scored[right[scored].argmin()]
    words = (
        f"Rows are the true classes, columns the predicted ones. Of {len(scored)} classes, {classes[best]} is "
        f"recognized best ({whole_percent(right[best])}) and {classes[worst]} worst ({whole_percent(right[worst])})."
    )
    if len(classes) > MAX_CLASSES:
        hover = {"captions": list(classes), "values": np.round(1000 * share).astype(int).tolist()}
        return Plot(title, words, _matrix(f"{title}. {words}", share), "matrix", hover=hover)
    rows = []
    for name, of_class in zip(classes, share.tolist(), strict=True):
        rows.append([name, *((whole_percent(value) if value else "", math.ceil(SHADES * value)) for value in of_class)])
    return Plot(title, words, Markup(""), "confusion", list(classes), rows)


def points(
    title: str,
    words: str,
    places: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
    images: Sequence[Tensor],
    captions: list[str],
) -> Plot:
    """Images where they lie, as many as fit beside each other; the others are dots. Labels (-1: none) are colors."""
    low, high = places.min(0), places.max(0)
    share = (places - low) / np.where(high > low, high - low, 1)
    share[:, 1] = 1 - share[:, 1]
    cells = np.minimum((share * (COLUMNS, ROWS)).astype(int), (COLUMNS - 1, ROWS - 1))
    middle = np.abs(share * (COLUMNS, ROWS) - cells - 0.5).max(1)
    tiles: dict[tuple[int, ...], int] = {}
    for i in np.argsort(middle, kind="stable").tolist():
        tiles.setdefault(tuple(cells[i].tolist()), i)

    shown = set(tiles.values())
    dots, pictures = [], []
    for i, (x, y) in enumerate(share.tolist()):
        tone = f"k{labels[i] % TONES}" if labels[i] >= 0 else "none"
        if i in shown:
            image = _tag("image", href=page_uri(images[i], TILE_PX), x=_percent(x), y=_percent(y))
            ring = _tag("rect", x=_percent(x), y=_percent(y))
            pictures.append(_tag("g", _tag("title", captions[i]), image, ring, class_=f"tile {tone}"))
        else:
            dot = _tag("circle", _tag("title", captions[i]), cx=_percent(x), cy=_percent(y), r=3)
            dots.append(_tag("g", dot, class_=f"dot {tone}"))

    names = []
    present = [label for label in range(len(classes)) if (labels == label).any()]
    centers = [np.median(share[labels == label], axis=0).tolist() for label in present]
    apart = _apart([y for _, y in centers], [1.4 / ROWS] * len(centers))
    for label, (x, _), y in zip(present, centers, apart, strict=True):
        names.append(_text(x, y, classes[label], class_=f"name k{label % TONES}"))
    return Plot(title, words, _svg("map", f"{title}. {words}", *dots, *pictures, *names), "map")


# --- the parts of a chart ---


def _tag(element: str, *inner: object, **attributes: object) -> Markup:
    """An element. Whatever its texts and attributes contain is escaped."""
    words = Markup("").join(
        Markup(' {}="{}"').format(name.strip("_").replace("_", "-"), value) for name, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(element, words, Markup("").join(inner))  # type: ignore[arg-type]


def _svg(kind: str, words: str, *parts: Markup) -> Markup:
    return _tag("svg", *parts, class_=f"plot {kind}", role="img", tabindex=0, aria_label=words)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _text(x: float, y: float, words: str, **attributes: object) -> Markup:
    return _tag("text", words, x=_percent(x), y=_percent(y), **attributes)


def _linear(low: float, high: float, share: bool = False, wanted: int = 4) -> Axis:
    """A scale with round ticks that covers low to high; shares in percent, with the decimals that tell ticks apart."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # rounding errors are no range
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [k * step for k in range(first, last + 1)]
    digits = max(0, -2 - math.floor(math.log10(step) + 1e-9))
    shown: Words = partial(in_percent, digits=digits) if share else "{:.4g}".format
    return Axis(ticks[0], ticks[-1], [(tick, shown(tick)) for tick in ticks])


def _frame(across: Axis, up: Axis, unit: str) -> Markup:
    """Grid lines with the names of the ticks, and the unit of the lower axis."""
    parts = []
    for value, name in up.ticks:
        y = 1 - up.place(value)
        parts.append(_tag("line", x1="0", x2="100%", y1=_percent(y), y2=_percent(y), class_="grid"))
        parts.append(_text(0.0, y, name, class_="left"))
    for value, name in across.ticks:
        parts.append(_text(across.place(value), 1.0, name, class_="below"))
    parts.append(_text(1.0, 1.0, unit, class_="unit"))
    return Markup("").join(parts)


def _curve(curve: Curve, across: Axis, up: Axis, marks: bool = True) -> Markup:
    """The line, and with `marks` its points with their standard deviations."""
    places = [(across.place(x), 1 - up.place(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    path = " ".join(f"{100 * x:.2f},{100 * y:.2f}" for x, y in places)
    stretched = {"viewBox": "0 0 100 100", "preserveAspectRatio": "none", "width": "100%", "height": "100%"}
    parts = [_tag("svg", _tag("polyline", points=path), class_="area", **stretched)]
    for (x, y), labels, mean, std in zip(places, curve.x, curve.y, curve.std, strict=True):
        if not marks:
            break
        ends = {"y1": _percent(1 - up.place(mean + std)), "y2": _percent(1 - up.place(mean - std))}
        if std:
            parts.append(_tag("line", x1=_percent(x), x2=_percent(x), **ends, class_="whisker"))
        words = f"{curve.name}, {labels:,.4g} labels per class: {in_percent(mean, std or None)}"
        parts.append(_tag("circle", _tag("title", words), cx=_percent(x), cy=_percent(y), r=4))
    return _tag("g", *parts, class_=f"k{curve.tone}")


def _end(curve: Curve, across: Axis, up: Axis, words: str) -> Markup:
    """The last point of a line, and its value beside it."""
    x, y = across.place(curve.x[-1]), 1 - up.place(curve.y[-1])
    dot = _tag("circle", cx=_percent(x), cy=_percent(y), r=4)
    return _tag("g", dot, _text(x, y, words, class_="end"), class_=f"k{curve.tone}")


def _names(curves: Sequence[Curve], across: Axis, up: Axis) -> Markup:
    """The name of each line beside its last point; where it has to make room for others, a leader goes to the point."""
    ends = [(across.place(curve.x[-1]), 1 - up.place(curve.y[-1])) for curve in curves]
    names = [lines_of(f"{curve.name} {in_percent(curve.y[-1])}", NAME_WIDTH) for curve in curves]
    places = _apart([y for _, y in ends], [NAME_GAP + LINE_HEIGHT * len(lines) for lines in names])
    parts = []
    for curve, (x, end), lines, y in zip(curves, ends, names, places, strict=True):
        line = _tag("line", x1=4, y1=100 * end, x2=LEADER_PX, y2=100 * y, class_="leader")
        # A box of its own, in which x is in pixels and y in percent.
        box = {"viewBox": f"0 0 {LEADER_PX} 100", "preserveAspectRatio": "none", "width": LEADER_PX, "height": "100%"}
        leader = _tag("svg", line, x=_percent(x), class_="area", **box)
        rows = []
        for k, words in enumerate(lines):
            down = 1 if k else -(len(lines) - 1) / 2  # in lines, from the one before, or from the middle
            rows.append(_tag("tspan", words, x=_percent(x), dy=f"{LINE_EM * down:.2f}em"))
        name = _tag("text", *rows, x=_percent(x), y=_percent(y), class_="end led")
        parts.append(_tag("g", leader, name, class_=f"k{curve.tone}"))
    return Markup("").join(parts)


def _apart(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """The places (0 to 1) moved as far as names of these heights in the middle of them need, in the order given."""
    order = np.argsort(places, kind="stable")
    moved = np.array(places, dtype=float)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + (heights[before] + heights[after]) / 2)
    # Those pushed out at the end move back up, and push others.
    limit = 1.0 + heights[order[-1]] / 2 if len(order) else 1.0
    for place in order[::-1]:
        moved[place] = min(moved[place], limit - heights[place] / 2)
        limit = moved[place] - heights[place] / 2
    return moved.tolist()


def _matrix(words: str, values: Float[np.ndarray, "m m"]) -> Markup:
    """An image of one pixel a value, -1 to 1: the sign is its color, the size how opaque it is."""
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where(values[..., None] >= 0, POSITIVE, NEGATIVE)
    pixels[..., 3] = np.round(255 * np.clip(np.abs(values), 0, 1))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return _tag("img", class_="plot matrix", tabindex=0, src=data_uri(file.getvalue(), "png"), alt=words)
