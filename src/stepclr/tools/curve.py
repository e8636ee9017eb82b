"""evaluation.json as an image: top-1 against the number of labels."""

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stepclr.io import write_whole

# Okabe and Ito's colors, told apart by color-blind readers too; the marker says it once more.
STYLES = {
    "pixels": ("#999999", "s"),
    "random": ("#E69F00", "^"),
    "scratch": ("#D55E00", "v"),
    "simclr": ("#0072B2", "o"),
    "finetuned": ("#009E73", "D"),
    "knn": ("#CC79A7", "P"),
}


def write_curve(scores: dict[str, Any], path: Path) -> None:
    """Write `label_curve` as an image (.png), whole or not at all."""
    content = io.BytesIO()
    label_curve(scores).savefig(content, format="png", dpi=150)
    write_whole(path, lambda file: file.write(content.getbuffer()))


def label_curve(scores: dict[str, Any]) -> Figure:
    """One line a method: mean top-1, and the standard deviation over the draws.

    "all" stands at its mean number of labels a class.
    """
    protocol = scores["protocol"]
    everything = protocol["train"]["images"] / len(protocol["classes"])
    ticks: dict[float, str] = {}
    figure = Figure(figsize=(7, 4.5), layout="constrained")  # no pyplot: Agg draws it, no screen is needed
    axes = figure.add_subplot(xscale="log")
    for method, (color, marker) in STYLES.items():
        points = []
        for row in scores["rows"]:
            if row["method"] == method:
                budget = row["labels_per_class"]
                at = everything if budget == "all" else float(budget)
                ticks[at] = str(budget)  # "all" comes last, and names its place
                points.append((at, row["mean"], row["std"] or 0.0))
        if points:
            x, mean, std = zip(*sorted(points), strict=True)
            axes.errorbar(x, mean, std, label=method, color=color, marker=marker, markersize=5, capsize=3)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("labels a class")
    axes.set_ylabel(f"top-1 (mean and std of {protocol['draws']} draws)")
    axes.set_title(f"{protocol['test']['images']:,} images of {protocol['test']['source']}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
