"""The charts of a page: each is a Plotly specification, the words that describe it, and its numbers as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from stepclr.data.order import spread
from stepclr.evaluation.results import Scores
from stepclr.tools.methods import method_of
from stepclr.tools.scores import label_curves, percent, start_words

Json = dict[str, Any]
# Okabe and Ito's colors, which color-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")
DOWNWARDS = {"autorange": "reversed", "constrain": "domain", "scaleanchor": "x"}  # of a matrix: rows, square cells
MAX_ROWS = 12  # of the table under a line
MAX_CLASSES = 20  # of the table under a confusion matrix


@dataclass(frozen=True)
class Plot:
    """A chart: Plotly's `data` and `layout`, and `words` that describe it to readers who cannot see it.

    `hover` is what the page shows next to the chart for a place in it: {"kind": "pair", "images", "captions"} for a
    matrix, {"kind": "point", ...} for points that carry their number as customdata.
    """

    title: str
    words: str
    data: list[Json]
    layout: Json
    header: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    hover: Json = field(default_factory=dict)


def line(title: str, x: Sequence[float], y: Sequence[float], unit: str) -> Plot:
    """One logged quantity over the epochs."""
    words = (
        f"{title} over {x[-1]:g} epochs: {y[0]:.4g} at first, {y[-1]:.4g} at last, "
        f"between {min(y):.4g} and {max(y):.4g}."
    )
    mode = "lines" if len(x) > 1 else "markers"
    shown = "epoch %{x:.2f}: %{y:.4g}<extra></extra>"
    trace = _trace("scatter", mode=mode, x=x, y=y, line={"color": COLORS[0]}, hovertemplate=shown)
    layout = _layout(220, xaxis=_axis("epoch"), yaxis=_axis(unit, type="linear"))
    rows = [(f"{x[k]:.2f}", f"{y[k]:.4g}") for k in spread(len(x), MAX_ROWS)]
    return Plot(title, words, [trace], layout, ("epoch", title), rows)


def bars(title: str, names: Sequence[str], counts: Sequence[int], unit: str) -> Plot:
    """A count for each class."""
    most, least = int(np.argmax(counts)), int(np.argmin(counts))
    words = (
        f"{len(names)} classes; {names[most]} has the most {unit} ({counts[most]:,}), "
        f"{names[least]} the fewest ({counts[least]:,})."
    )
    shown = "%{x}: %{y:,}<extra></extra>"
    x = [text(name) for name in names]
    trace = _trace("bar", x=x, y=list(counts), marker={"color": COLORS[0]}, hovertemplate=shown)
    layout = _layout(260, xaxis={"type": "category"}, yaxis=_axis(unit))
    rows = [(name, f"{count:,}") for name, count in zip(names, counts, strict=True)]
    return Plot(title, words, [trace], layout, ("class", unit), rows)


def similarities(
    title: str, words: str, cosine: Float[np.ndarray, "m m"], images: list[str], captions: list[str]
) -> Plot:
    """The cosine of every two projections of a batch; hovering over a place shows its two images."""
    trace = _heatmap(np.round(cosine, 3), -1, "RdBu", {"thickness": 12}, hoverinfo="none")
    layout = _layout(420, xaxis={"constrain": "domain", "showgrid": False}, yaxis={**DOWNWARDS, "showgrid": False})
    return Plot(title, words, [trace], layout, hover={"kind": "pair", "images": images, "captions": captions})


def confusion(title: str, classes: Sequence[str], matrix: Int[np.ndarray, "c c"]) -> Plot:
    """How often images of one class (rows) were taken for another (columns), as shares of the row."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    right = np.diag(share)
    best, worst = int(right.argmax()), int(right.argmin())
    words = (
        f"Of {len(classes)} classes, {classes[best]} is recognized best ({right[best]:.0%}) and {classes[worst]} "
        f"worst ({right[worst]:.0%})."
    )
    names = [text(name) for name in classes]
    shown = "%{y} taken for %{x}: %{z:.1%}<extra></extra>"
    colorbar = {"thickness": 12, "tickformat": ".0%"}
    # Plotly's "Blues" runs from dark to light: reversed, white stands for none.
    trace = _heatmap(np.round(share, 4), 0, "Blues", colorbar, x=names, y=names, hovertemplate=shown)
    x = _axis("taken for", type="category", constrain="domain")
    layout = _layout(420, xaxis=x, yaxis=_axis("is", type="category", **DOWNWARDS))
    if len(classes) > MAX_CLASSES:
        return Plot(title, words, [trace], layout)
    rows = [[name, *(f"{value:.0%}" for value in row)] for name, row in zip(classes, share, strict=True)]
    return Plot(title, words, [trace], layout, ("is, taken for", *classes), rows)


def label_budget(scores: Scores) -> Plot:
    """Top-1 of each method against the number of labels, with the standard deviation over the draws."""
    curves = label_curves(scores)
    traces: list[Json] = []
    for method, points in curves.items():
        style = method_of(method, scores)
        assert style is not None
        x, mean, std = zip(*points, strict=True)
        traces.append(
            _trace(
                "scatter",
                mode="lines+markers",
                name=method,
                x=x,
                y=mean,
                error_y={"type": "data", "array": std, "visible": True},
                marker={"color": style.color, "symbol": SYMBOLS[len(traces) % len(SYMBOLS)], "size": 8},
                hovertemplate=f"{method}, %{{x:g}} labels per class: %{{y:.1%}}<extra></extra>",
            )
        )
    order = list(dict.fromkeys(row.method for row in scores.rows))
    rows = sorted(scores.rows, key=lambda row: order.index(row.method))
    best = max(scores.rows, key=lambda row: row.mean)
    words = (
        f"Top-1 by labels per class, one line per method; the highest is {best.method} with "
        f"{best.labels_per_class} labels: {percent(best)}. {start_words(scores)}"
    )
    ticks = sorted({x for points in curves.values() for x, _, _ in points})
    layout = _layout(
        380,
        legend={"orientation": "h", "y": -0.25},
        xaxis=_axis("labels per class", type="log", tickvals=ticks, ticktext=[f"{x:g}" for x in ticks]),
        yaxis=_axis("top-1", tickformat=".0%"),
    )
    table = [(row.method, row.labels_per_class, percent(row)) for row in rows]
    return Plot("Label budget", words, traces, layout, ("method", "labels per class", "top-1, ± std over draws"), table)


def points(
    title: str,
    words: str,
    places: Float[np.ndarray, "n 2"],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    images: list[str],
    captions: list[str],
) -> Plot:
    """Images as points; each class has a color and a symbol, unless there are more classes than can be told apart."""
    if not 0 < len(classes) <= 2 * len(COLORS):
        classes, labels = (), np.full(len(labels), -1)
    traces = []
    for label in range(-1, len(classes)):
        rows = np.flatnonzero(labels == label)
        if not len(rows):
            continue
        name, color, symbol = "no label" if classes else "images", "#999999", "circle"
        if label >= 0:
            name, color = text(classes[label]), COLORS[label % len(COLORS)]
            symbol = SYMBOLS[(label + label // len(COLORS)) % len(SYMBOLS)]
        traces.append(
            _trace(
                "scatter",
                mode="markers",
                hoverinfo="none",
                name=name,
                x=np.round(places[rows, 0], 3).tolist(),
                y=np.round(places[rows, 1], 3).tolist(),
                customdata=rows.tolist(),
                marker={"size": 7, "opacity": 0.75, "color": color, "symbol": symbol},
            )
        )
    bare = {"showticklabels": False, "zeroline": False}
    legend = {"orientation": "h", "y": -0.05}
    layout = _layout(480, xaxis=bare, yaxis=bare, legend=legend, showlegend=len(traces) > 1)
    return Plot(title, words, traces, layout, hover={"kind": "point", "images": images, "captions": captions})


def text(name: str) -> str:
    """A name as Plotly must be given it to show it unchanged: its texts may contain markup."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _trace(kind: str, **properties: Any) -> Json:
    return {"type": kind, **properties}


def _heatmap(z: Float[np.ndarray, "m m"], lowest: int, colors: str, colorbar: Json, **properties: Any) -> Json:
    scale = {"zmin": lowest, "zmax": 1, "colorscale": colors, "reversescale": True, "colorbar": colorbar}
    return _trace("heatmap", z=z.tolist(), **scale, **properties)


def _layout(height: int, **parts: Any) -> Json:
    return {"height": height, **parts}


def _axis(title: str, **properties: Any) -> Json:
    return {"title": {"text": title}, **properties}
