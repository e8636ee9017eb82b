"""`report`: the sections of a page, put into its template."""

import os
import secrets
from dataclasses import asdict
from pathlib import Path

from stepclr.data.sources import Source
from stepclr.io import write_whole
from stepclr.pretraining.run import Run
from stepclr.tools.pages import template
from stepclr.tools.report.context import open_context
from stepclr.tools.report.contrast import contrast
from stepclr.tools.report.data_and_views import data, views
from stepclr.tools.report.evaluation import evaluation
from stepclr.tools.report.network import network
from stepclr.tools.report.training import training
from stepclr.tools.report.usage import usage


def report(run: str | os.PathLike[str], source: Source | None = None) -> Path:
    """Write `report.html` into a run's folder: the eight steps on the run's own images, in a single file.

    Args: run: the folder of a finished run. source: where its images are, if no longer where config.json says.
    Without the images the page says so, and shows what the run itself knows.
    Raises StepclrError where there is no run, or where its encoder or evaluation.json cannot be read.
    """
    context = open_context(Run(Path(run)), source)
    settings = asdict(context.config).items()
    page = template("report").render(
        nonce=secrets.token_urlsafe(16),  # no other script runs, whatever a file is called
        title=context.run.folder.resolve().name,
        settings={name: value for name, value in settings if value is not None and not isinstance(value, dict)},
        self_supervised=context.contrastive and not context.by_label,
        data=data(context),
        views=views(context),
        network=network(context),
        contrast=contrast(context),
        training=training(context),
        evaluation=evaluation(context),
        usage=usage(context),
    )
    path = context.run.folder / "report.html"
    # A file name may be undecodable: what cannot be encoded is shown as a question mark.
    write_whole(path, lambda file: file.write(page.encode(errors="replace")))
    return path
