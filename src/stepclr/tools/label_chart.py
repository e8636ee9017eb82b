"""Scores against the number of labels: the curve of each method, as numbers and as a chart."""

from pathlib import Path
from typing import TYPE_CHECKING

from stepclr.evaluation.baselines import START
from stepclr.evaluation.results import Score, Scores
from stepclr.evaluation.splits import share_of
from stepclr.io import write_whole
from stepclr.tools.methods import method_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label_curves(scores: Scores) -> dict[str, list[tuple[float, float, float]]]:
    """(labels per class, mean, std) of each method, by rising number of labels; "all" is the mean over the classes."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for method in dict.fromkeys(row.method for row in scores.rows):
        rows = [row for row in scores.rows if row.method == method]
        if method_of(method, scores):
            curves[method] = sorted((_labels(row, scores), row.mean, row.std or 0.0) for row in rows)
    return curves


def _labels(row: Score, scores: Scores) -> float:
    protocol = scores.protocol
    if isinstance(row.labels_per_class, int):
        return float(row.labels_per_class)
    # Of a share, each class has at least one label. Files of earlier versions do not have `labels`.
    labels = row.labels or (share_of(row.labels_per_class) or 1.0) * protocol["train"]["images"]
    return float(labels / len(protocol["classes"]))


def label_chart(scores: Scores) -> "Figure":
    """Mean top-1 against the number of labels, one line per method, with the standard deviation over the draws."""
    from matplotlib.figure import Figure  # for this chart alone; without pyplot no screen is needed
    from matplotlib.ticker import PercentFormatter

    protocol = scores.protocol
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log")
    curves = label_curves(scores)
    for name, points in curves.items():
        x, mean, std = zip(*points, strict=True)
        style = method_of(name, scores)
        assert style is not None
        axes.errorbar(x, mean, std, label=name, color=style.color, marker=style.marker, markersize=5, capsize=3)
    # "all" comes last, and gives its place its name.
    ticks = {_labels(row, scores): str(row.labels_per_class) for row in scores.rows}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("labels per class")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_ylabel(f"top-1 (mean ± std of {protocol['draws']} draws)")
    title = f"{protocol['test']['images']:,} images of {protocol['test']['source']}"
    if protocol.get("started_from"):
        title += f"\n{START}: {protocol['started_from']}"
    # A name is text: it has no formula between $ and $, and an underscore before it does not hide it.
    axes.set_title(title, parse_math=False)
    for text in axes.legend(axes.containers, list(curves)).get_texts():
        text.set_parse_math(False)
    axes.grid(alpha=0.3)
    return figure


def write_label_chart(scores: Scores, path: Path) -> None:
    """Write `label_chart` as a PNG file, all or nothing."""
    write_whole(path, lambda file: label_chart(scores).savefig(file, format="png", dpi=150))
