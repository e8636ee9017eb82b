"""report.html: the sections, put into the template."""

import os
import secrets
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2

from stepclr.data.images import ImageSet
from stepclr.io import write_whole
from stepclr.pretraining.run import Run
from stepclr.tools.report.context import material
from stepclr.tools.report.contrast import contrast
from stepclr.tools.report.data_and_views import data, views
from stepclr.tools.report.evaluation import evaluation
from stepclr.tools.report.network import network
from stepclr.tools.report.training import training
from stepclr.tools.report.usage import usage


def report(run: str | os.PathLike[str], source: str | ImageSet | None = None) -> Path:
    """Write `report.html` into the run's folder: its eight steps on its own images, in one file that needs no other.

    Args: run: the folder of a finished run. source: where its images are, if no longer where config.json says.
    Without them the page says so, and shows what the run itself knows.
    Raises StepclrError where there is no run, or its encoder or evaluation.json cannot be read.
    """
    made = material(Run(Path(run)), source)
    settings = {key: value for key, value in made.config.items() if value is not None and not isinstance(value, dict)}
    page = (
        _environment()
        .get_template("page.html")
        .render(
            nonce=secrets.token_urlsafe(16),  # no other script runs, whatever a file is called
            title=made.run.folder.resolve().name,
            settings=settings,
            data=data(made),
            views=views(made),
            network=network(made),
            contrast=contrast(made),
            training=training(made),
            evaluation=evaluation(made),
            usage=usage(made),
        )
    )
    path = made.run.folder / "report.html"
    # A file name need not be text: what cannot be encoded is shown as a question mark.
    write_whole(path, lambda file: file.write(page.encode(errors="replace")))
    return path


class _Absent(jinja2.StrictUndefined):
    """What a section has not got: it can be asked for, and not be shown."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


@cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("stepclr.tools.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Absent,
    )
    found.globals |= {"plotly": _plotly, "asset": _asset}
    return found


def _plotly() -> str:
    """Plotly's own bundle, as its Python package carries it."""
    return (
        (resources.files("plotly") / "package_data" / "plotly.min.js")
        .read_text("utf-8")
        .replace("</script", "<\\/script")
    )


def _asset(name: str) -> str:
    return (resources.files("stepclr.tools.report") / name).read_text("utf-8")
