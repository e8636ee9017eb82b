"""Step 6 on a page: the signals of metrics.jsonl as lines, and what they say of the run's health."""

from typing import Any

from stepclr.tools.report.context import Material
from stepclr.tools.report.health import health
from stepclr.tools.report.plots import Plot, line

Json = dict[str, Any]
SIGNALS = {  # of a line of metrics.jsonl: title, unit
    "loss": ("Loss", "nats"),
    "contrastive_top1": ("Contrastive top-1", "share of anchors"),
    "knn": ("Weighted kNN", "top-1"),
    "top1": ("Top-1 of the batch", "share"),
    "alignment": ("Alignment", "squared distance"),
    "uniformity": ("Uniformity", "log of a mean"),
    "effective_rank": ("Effective rank of h", "directions"),
    "lr": ("Learning rate", "rate"),
    "images_per_second": ("Images a second", "images / s"),
    "waiting": ("Waiting for data", "share of time"),
}


def training(made: Material) -> Json:
    """The lines, and the health in plain words."""
    return {
        "plots": [plot for name in SIGNALS if (plot := _signal(made, name))],
        "health": health(made.config, made.metrics, made.scores.to_dict() if made.scores else None),
        "steps": made.metrics[-1]["step"] if made.metrics else 0,
        "epochs": made.metrics[-1]["epoch"] if made.metrics else 0,
        "wanted": made.config["epochs"],
    }


def _signal(made: Material, name: str) -> Plot | None:
    lines = [entry for entry in made.metrics if name in entry]
    per_epoch = max(1, made.config.get("steps_per_epoch", 1))
    title, unit = SIGNALS[name]
    return (
        line(title, [entry["step"] / per_epoch for entry in lines], [entry[name] for entry in lines], unit)
        if lines
        else None
    )
