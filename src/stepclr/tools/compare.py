"""Runs side by side: what each was, how long it took, what it scored."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from stepclr.errors import StepclrError
from stepclr.pretraining.run import Run
from stepclr.tools.scores import Row, budget_words, cell, stored_scores

Scores = dict[str, Any]  # evaluation.json


def compare_table(runs: Iterable[str | os.PathLike[str]]) -> Table:
    """One column a run: policy, loss, encoder, epochs, minutes, last watched kNN, its scores, mean +- std over draws.

    Raises StepclrError for a folder that is no run, and where two runs were scored on other images or classes.
    """
    scores = {run: stored_scores(run) for run in (Run(Path(path)) for path in runs)}
    _check_alike({run: _what(found) for run, found in scores.items() if found})
    columns = [{**_facts(run), **_cells(found)} for run, found in scores.items()]
    table = Table(title="runs, and their top-1 on the test images")
    table.add_column("run", no_wrap=True)
    for run in scores:
        table.add_column(str(run.folder), justify="right", overflow="fold")
    for what in dict.fromkeys(key for column in columns for key in column):
        table.add_row(what, *(column.get(what, "") for column in columns))
    return table


def _facts(run: Run) -> dict[str, str]:
    config, lines = run.config, run.metrics
    last = lines[-1] if lines else {"epoch": 0, "seconds": 0.0}
    watched = [line["knn"] for line in lines if "knn" in line]
    done = "" if last["epoch"] == config["epochs"] else f" of {config['epochs']}"
    return {
        "policy": config["policy"],
        "loss": config["loss"],
        "encoder": config["encoder"],
        "images": f"{config['images']:,}",
        "epochs": f"{last['epoch']}{done}",
        "minutes": f"{last.get('seconds', 0) / 60:.1f}",
        "watched kNN": f"{watched[-1]:.3f}" if watched else "",
    }


def _cells(scores: Scores | None) -> dict[str, str]:
    rows: list[Row] = scores["rows"] if scores else []
    return {f"{row['method']}, {budget_words(row['labels_per_class'])}": cell(row) for row in rows if _own(row)}


def _own(row: Row) -> bool:
    """Whether the run's encoder earned it; the baselines are the same for all."""
    return row["method"] in ("simclr", "knn", "finetuned")


def _check_alike(scored: dict[Run, list[Any]]) -> None:
    first: tuple[Run, list[Any]] | None = None
    for run, what in scored.items():
        first = first or (run, what)
        if what != first[1]:
            raise StepclrError(
                f"{first[0].folder} and {run.folder} were not scored alike: {_words(first[1])}, and {_words(what)}; "
                "evaluate both on the same images"
            )


def _what(found: Scores) -> list[Any]:
    protocol = found["protocol"]
    return [protocol["classes"], protocol["test"]["source"], protocol["test"]["images"]]


def _words(what: list[Any]) -> str:
    classes, source, images = what
    return f"{images:,} images of {source}, {len(classes)} classes from {classes[0]} to {classes[-1]}"
