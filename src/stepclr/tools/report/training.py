"""Step 6 on a page: the metrics of metrics.jsonl as charts, and what they say about the run's health."""

from typing import Any

from stepclr.tools.report.context import Context
from stepclr.tools.report.health import health
from stepclr.tools.report.plots import line

Json = dict[str, Any]
METRICS = {  # fields of metrics.jsonl: title and unit of the chart
    "loss": ("Loss", "nats"),
    "contrastive_top1": ("Contrastive top-1", "share of anchors"),
    "knn": ("Weighted kNN", "top-1"),
    "top1": ("Top-1 of the batch", "share"),
    "alignment": ("Alignment", "squared distance"),
    "uniformity": ("Uniformity", "log of a mean"),
    "effective_rank": ("Effective rank of h", "directions"),
    "lr": ("Learning rate", "rate"),
    "images_per_second": ("Images per second", "images / s"),
    "waiting": ("Waiting for data", "share of time"),
}


def training(context: Context) -> Json:
    """A chart for each metric, and the health of the run in plain words."""
    steps_per_epoch = max(1, context.config.steps_per_epoch)
    plots = []
    for name, (title, unit) in METRICS.items():
        lines = [entry for entry in context.metrics if name in entry]
        if lines:
            epochs = [entry["step"] / steps_per_epoch for entry in lines]
            plots.append(line(title, epochs, [entry[name] for entry in lines], unit))
    last = context.metrics[-1] if context.metrics else {"step": 0, "epoch": 0}
    return {
        "plots": plots,
        "health": health(context.config, context.metrics, context.scores),
        "steps": last["step"],
        "epochs": last["epoch"],
        "wanted": context.config.epochs,
    }
