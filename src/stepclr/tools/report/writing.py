"""`report`: the sections of a page, put into its template."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from stepclr.data.sources import Source
from stepclr.evaluation.results import Scores
from stepclr.io import write_whole
from stepclr.pretraining.run import Run
from stepclr.tools.pages import asset, template
from stepclr.tools.report.classifier import classifier, finetuned
from stepclr.tools.report.context import open_context, open_part
from stepclr.tools.report.contrast import contrast
from stepclr.tools.report.data_and_views import data, views
from stepclr.tools.report.evaluation import evaluation
from stepclr.tools.report.network import network
from stepclr.tools.report.training import training
from stepclr.tools.report.usage import usage
from stepclr.tools.report.verdict import verdict


class RunPage(NamedTuple):
    """A page that was written, and of its verdict the health in words and (what to do next, the command)."""

    path: Path
    health: str
    next: tuple[str, str]


def report(run: str | os.PathLike[str], source: Source | None = None) -> Path:
    """Write `report.html` into a run's folder: the eight steps on the run's own images, in a single file.

    Args: run: the folder of a finished run. source: where its images are, if no longer where config.json says.
    Without the images the page says so, and shows what the run itself knows.
    The same holds for a run that has not ended, or diverged, and has no encoder.
    Raises StepclrError where there is no run, or where evaluation.json or finetune.json cannot be read.
    """
    return run_page(run, source).path


def run_page(run: str | os.PathLike[str], source: Source | None = None) -> RunPage:
    """`report`, with the verdict of the page."""
    context = open_context(Run(Path(run)), source)
    settings = asdict(context.config).items()
    sections: dict[str, dict[str, Any]] = {
        "data": data(context),
        "views": views(context),
        "network": network(context),
        "contrast": contrast(context),
        "training": training(context),
        "evaluation": evaluation(context),
        "classifier": classifier(context),
        "usage": usage(context),
    }
    top = verdict(context, sections)
    page = template("report").render(
        title=context.run.folder.resolve().name,
        style=asset("style.css") + asset("report/page.css"),
        script=asset("report/page.js"),
        settings={name: value for name, value in settings if value is not None and not isinstance(value, dict)},
        self_supervised=context.contrastive and not context.by_label,
        verdict=top,
        **sections,
    )
    path = _write(page, context.run.folder / "report.html")
    return RunPage(path, f"{top['health'].name}: {top['health'].words}", top["next"])


def classifier_page(scores: Scores, start: str) -> Path:
    """Write the page of a classifier that `finetune` made of an encoder that is not a run, beside its file.

    Args: scores: those of `finetune`. start: what it began with, an encoder file or "timm:NAME".
    """
    path = Path(scores.protocol["classifier"]["file"])
    page = template("report", "classifier.html").render(
        title=path.name,
        start=start,
        style=asset("style.css") + asset("report/page.css"),
        script=asset("report/page.js"),
        classifier=finetuned(path, scores, open_part(scores.protocol["test"] or {})),
    )
    return _write(page, path.with_suffix(".html"))


def _write(page: str, path: Path) -> Path:
    # A file name may be undecodable: what cannot be encoded is shown as a question mark.
    write_whole(path, lambda file: file.write(page.encode(errors="replace")))
    return path
