"""Charts as Plotly draws them: each a specification, the words that stand for it, and its numbers as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from stepclr.tools.curve import STYLES
from stepclr.tools.spread import spread

Json = dict[str, Any]
# Okabe and Ito's colors, told apart by color-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")
ROWS = 12  # of a table that stands beside a line


@dataclass(frozen=True)
class Plot:
    """A chart: Plotly's `data` and `layout`; `words` say what it shows to those who do not see it.

    `hover`: what is shown beside the chart for a place in it: {"kind": "pair", "images": [...], "captions": [...]}
    of a matrix, {"kind": "point", ...} of points that carry their number as customdata.
    """

    title: str
    words: str
    data: list[Json]
    layout: Json
    header: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    hover: Json = field(default_factory=dict)


def line(title: str, x: Sequence[float], y: Sequence[float], unit: str, log: bool = False) -> Plot:
    """One signal over the epochs."""
    low, high = min(y), max(y)
    words = (
        f"{title} over {x[-1]:g} epochs: {_n(y[0])} at first, {_n(y[-1])} at last, between {_n(low)} and {_n(high)}."
    )
    some = spread(len(x), ROWS)
    return Plot(
        title,
        words,
        [
            {
                "type": "scatter",
                "mode": "lines" if len(x) > 1 else "markers",
                "x": x,
                "y": y,
                "line": {"color": COLORS[0]},
                "hovertemplate": "epoch %{x:.2f}: %{y:.4g}<extra></extra>",
            }
        ],
        {
            "height": 220,
            "xaxis": {"title": {"text": "epoch"}},
            "yaxis": {"title": {"text": unit}, "type": "log" if log else "linear"},
        },
        ("epoch", title),
        [(f"{x[k]:.2f}", _n(y[k])) for k in some],
    )


def bars(title: str, names: Sequence[str], counts: Sequence[int], what: str) -> Plot:
    """A count for each name."""
    most, least = int(np.argmax(counts)), int(np.argmin(counts))
    words = (
        f"{len(names)} classes; most {what} has {names[most]} ({counts[most]:,}), "
        f"fewest {names[least]} ({counts[least]:,})."
    )
    return Plot(
        title,
        words,
        [
            {
                "type": "bar",
                "x": [text(name) for name in names],
                "y": list(counts),
                "marker": {"color": COLORS[0]},
                "hovertemplate": "%{x}: %{y:,}<extra></extra>",
            }
        ],
        {"height": 260, "xaxis": {"type": "category"}, "yaxis": {"title": {"text": what}}},
        ("class", what),
        [(name, f"{count:,}") for name, count in zip(names, counts, strict=True)],
    )


def similarities(
    title: str, words: str, cosine: Float[np.ndarray, "m m"], images: list[str], captions: list[str]
) -> Plot:
    """The cosine of every two projections of a batch; the two images come with the place."""
    return Plot(
        title,
        words,
        [
            {
                "type": "heatmap",
                "z": np.round(cosine, 3).tolist(),
                "zmin": -1,
                "zmax": 1,
                "colorscale": "RdBu",
                "reversescale": True,
                "colorbar": {"thickness": 12},
                "hoverinfo": "none",
            }
        ],
        _square(),
        hover={"kind": "pair", "images": images, "captions": captions},
    )


def confusion(title: str, classes: Sequence[str], matrix: Int[np.ndarray, "c c"]) -> Plot:
    """How often images of one class (rows) were taken for another (columns), as shares of the row."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    right = np.diag(share)
    best, worst = int(right.argmax()), int(right.argmin())
    words = (
        f"Of {len(classes)} classes {classes[best]} is named best ({right[best]:.0%}) and {classes[worst]} worst "
        f"({right[worst]:.0%})."
    )
    names = [text(name) for name in classes]
    rows = [[name, *(f"{value:.0%}" for value in row)] for name, row in zip(classes, share, strict=True)]
    return Plot(
        title,
        words,
        [
            {
                "type": "heatmap",
                "z": np.round(share, 4).tolist(),
                "x": names,
                "y": names,
                "zmin": 0,
                "zmax": 1,
                "colorscale": "Blues",
                "reversescale": True,  # white is none
                "colorbar": {"thickness": 12, "tickformat": ".0%"},
                "hovertemplate": "%{y} taken for %{x}: %{z:.1%}<extra></extra>",
            }
        ],
        {
            **_square(),
            "xaxis": {"title": {"text": "taken for"}, "type": "category", "constrain": "domain"},
            "yaxis": {
                "title": {"text": "is"},
                "type": "category",
                "autorange": "reversed",
                "constrain": "domain",
                "scaleanchor": "x",
            },
        },
        ("is, taken for", *classes) if len(classes) <= 20 else (),
        rows if len(classes) <= 20 else (),
    )


def budgets(scores: Json) -> Plot:
    """Top-1 of each method against the number of labels, with the standard deviation over the draws."""
    protocol = scores["protocol"]
    everything = protocol["train"]["images"] / len(protocol["classes"])
    data: list[Json] = []
    rows: list[Sequence[object]] = []
    for method, (color, _) in STYLES.items():
        own = [row for row in scores["rows"] if row["method"] == method]
        rows += [(method, row["labels_per_class"], f"{row['mean']:.3f}", _n(row["std"])) for row in own]
        at = [everything if row["labels_per_class"] == "all" else float(row["labels_per_class"]) for row in own]
        order = np.argsort(at)
        if own:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": method,
                    "x": [at[k] for k in order],
                    "y": [own[k]["mean"] for k in order],
                    "error_y": {"type": "data", "array": [own[k]["std"] or 0 for k in order], "visible": True},
                    "marker": {"color": color, "symbol": SYMBOLS[len(data) % len(SYMBOLS)], "size": 8},
                    "hovertemplate": f"{method}, %{{x:g}} labels a class: %{{y:.3f}}<extra></extra>",
                }
            )
    best = max(scores["rows"], key=lambda row: row["mean"])
    words = (
        f"Top-1 by labels a class, a line a method; the highest is {best['method']} with {best['labels_per_class']} "
        f"labels: {best['mean']:.3f}."
    )
    ticks = sorted({x for trace in data for x in trace["x"]})
    return Plot(
        "Label budget",
        words,
        data,
        {
            "height": 380,
            "legend": {"orientation": "h", "y": -0.25},
            "xaxis": {
                "type": "log",
                "title": {"text": "labels a class"},
                "tickvals": ticks,
                "ticktext": [f"{x:g}" for x in ticks],
            },
            "yaxis": {"title": {"text": "top-1"}},
        },
        ("method", "labels a class", "top-1", "std over the draws"),
        rows,
    )


def points(
    title: str,
    words: str,
    at: Float[np.ndarray, "n 2"],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    images: list[str],
    captions: list[str],
) -> Plot:
    """Images as points, a color and a symbol a class (at most as many as can be told apart)."""
    known = len(classes) if 0 < len(classes) <= len(COLORS) * 2 else 0
    data = []
    for label in range(-1, known):
        rows = np.flatnonzero((labels == label) if known else np.full(len(labels), label == -1))
        if len(rows):
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "hoverinfo": "none",
                    "name": text(classes[label]) if label >= 0 else "no label" if known else "images",
                    "x": np.round(at[rows, 0], 3).tolist(),
                    "y": np.round(at[rows, 1], 3).tolist(),
                    "customdata": rows.tolist(),
                    "marker": {
                        "size": 7,
                        "opacity": 0.75,
                        "color": COLORS[label % len(COLORS)] if label >= 0 else "#999999",
                        "symbol": SYMBOLS[(label + label // len(COLORS)) % len(SYMBOLS)] if label >= 0 else "circle",
                    },
                }
            )
    return Plot(
        title,
        words,
        data,
        {
            "height": 480,
            "xaxis": {"showticklabels": False, "zeroline": False},
            "yaxis": {"showticklabels": False, "zeroline": False},
            "legend": {"orientation": "h", "y": -0.05},
            "showlegend": len(data) > 1,
        },
        hover={"kind": "point", "images": images, "captions": captions},
    )


def text(name: str) -> str:
    """A name that Plotly shall show as it is: it takes some markup in its texts."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _square() -> Json:
    return {
        "height": 420,
        "xaxis": {"constrain": "domain", "showgrid": False},
        "yaxis": {"autorange": "reversed", "constrain": "domain", "scaleanchor": "x", "showgrid": False},
    }


def _n(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
