"""Step 6 on a page: the metrics of metrics.jsonl as charts, and what they say about the run's health."""

import math
from typing import Any

from stepclr.tools.report.context import Context
from stepclr.tools.report.health import health
from stepclr.tools.report.plots import Plot, line

Json = dict[str, Any]
# Fields of metrics.jsonl: title of the chart, unit, and how to read it. A unit of "share" is shown in percent.
LEARNING = {
    "loss": ("Loss", "nats", "Of a run that learns, it falls fast, then levels off."),
    "contrastive_top1": ("Contrastive top-1", "share", "How often an anchor finds its positive first."),
    "knn": ("Weighted kNN", "share", "Top-1 of labeled images, by the labels of their nearest neighbors."),
    "top1": ("Top-1 of the batch", "share", "How often the class of a view is predicted."),
}
GEOMETRY = {
    "alignment": ("Alignment", "squared distance", "Of the two views of an image; 0 is best."),
    "uniformity": ("Uniformity", "log of a mean", "0 is one point, about -4 is spread out."),
    "effective_rank": ("Effective rank of h", "directions", "How many directions the images use."),
}
MACHINE = {
    "lr": ("Learning rate", "rate", "The actual rate, after scaling and warm-up."),
    "images_per_second": ("Images per second", "images / s", "All parts of a step together."),
    "waiting": ("Waiting for data", "share", "Of the time of a step."),
}


def training(context: Context) -> Json:
    """A chart for each metric, and the health of the run in plain words: what needs attention, and what passed."""
    overall, *verdicts = health(context.config, context.metrics, context.scores)
    last = context.metrics[-1] if context.metrics else {"step": 0, "epoch": 0}
    return {
        "learning": _charts(context, LEARNING),
        "geometry": _charts(context, GEOMETRY),
        "machine": _charts(context, MACHINE),
        "health": overall,
        "attention": [verdict for verdict in verdicts if verdict.level != "good"],
        "passed": [verdict for verdict in verdicts if verdict.level == "good"],
        "steps": last["step"],
        "epochs": f"{min(last['epoch'], context.config.epochs):g}",
        "wanted": f"{context.config.epochs:g}",
        "seconds": last.get("seconds"),
    }


def _charts(context: Context, metrics: dict[str, tuple[str, str, str]]) -> list[Plot]:
    steps_per_epoch = max(1, context.config.steps_per_epoch)
    plots = []
    for name, (title, unit, note) in metrics.items():
        lines = [entry for entry in context.metrics if math.isfinite(entry.get(name, math.nan))]
        if lines:
            epochs = [entry["step"] / steps_per_epoch for entry in lines]
            plots.append(line(title, epochs, [float(entry[name]) for entry in lines], unit, note, unit == "share"))
    return plots
