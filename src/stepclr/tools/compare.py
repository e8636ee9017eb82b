"""Several runs side by side: settings, time, and their own scores."""

import os
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

from rich.table import Table

from stepclr.errors import StepclrError
from stepclr.evaluation.results import Scores
from stepclr.evaluation.splits import labels_words
from stepclr.metrics import KNN_TEMPERATURE, NEIGHBORS, in_percent
from stepclr.pretraining.run import Run
from stepclr.tools.methods import method_of
from stepclr.tools.scores import MEASURES, Json, percents, scored_on, shown_measures, stored_scores


def compare_table(runs: Iterable[str | os.PathLike[str]]) -> Table:
    """One column per run: policy, loss, encoder, epochs, minutes, last monitored kNN, and its own scores.

    Raises StepclrError for a folder that is not a run, and where two runs were scored with other images or classes.
    """
    scores = {run: stored_scores(run, to_compare=True) for run in (Run(Path(path)) for path in runs)}
    _check_alike({run.folder: scored_on(stored) for run, stored in scores.items() if stored and stored.rows})
    columns = [_facts(run) | _own_scores(stored) for run, stored in scores.items()]
    table = Table(title="runs, and their top-1 on the test images")
    table.add_column("run", no_wrap=True)
    for run in scores:
        table.add_column(str(run.folder), justify="right", overflow="fold")
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns))
    return table


def _facts(run: Run) -> dict[str, str]:
    config, lines = run.config, run.metrics
    last = lines[-1] if lines else {"epoch": 0}
    knn = [line["knn"] for line in lines if "knn" in line]
    unfinished = "" if lines and last["step"] == config.steps else f" of {config.epochs:g}"
    return {
        "policy": config.policy,
        "loss": config.loss,
        "encoder": config.encoder,
        "began with": config.weights or "",
        "images": f"{config.images:,}",
        "epochs": f"{last['epoch']}{unfinished}" if unfinished else f"{config.epochs:g}",
        "minutes": f"{last.get('seconds', 0) / 60:.1f}",
        "monitored kNN": in_percent(knn[-1]) if knn else "",
    }


def _own_scores(scores: Scores | None) -> dict[str, str]:
    cells = {}
    if scores and not scores.rows:
        cells["scores"] = "of an earlier encoder: evaluate again"
    if scores is None:
        return cells
    for row in scores.rows:
        method = method_of(row.method, scores)
        if not method or not method.ours:
            continue
        name = f"{row.method}{_setting(row.method, scores)}, {labels_words(row.labels_per_class, row.labels)}"
        cells[name] = percents(row)
        for measure in shown_measures(scores)[1:]:
            cells[f"{name}, {MEASURES[measure]}"] = percents(row, measure)
    return cells


def _setting(method: str, scores: Scores) -> str:
    """Neighbors and temperature of kNN, where they are not the usual ones: other rows than those of the usual."""
    settings = (scores.protocol.get("methods") or {}).get(method) or {}
    chosen = settings.get("neighbors", NEIGHBORS), settings.get("T", KNN_TEMPERATURE)
    return "" if chosen == (NEIGHBORS, KNN_TEMPERATURE) else f" (k {chosen[0]}, temperature {chosen[1]:g})"


def _check_alike(scored_on: dict[Path, Json]) -> None:
    """Raise StepclrError unless all runs learned from the same images and were scored on the same ones and classes."""
    for (first, of_first), (second, of_second) in combinations(scored_on.items(), 2):
        known = [name for name in of_second if name != "train" or (of_second["train"] and of_first["train"])]
        if any(of_second[name] != of_first[name] for name in known):
            raise StepclrError(
                f"{first} and {second} cannot be compared: the first was scored on {_test_words(of_first)}, "
                f"the second on {_test_words(of_second)}; evaluate both with the same images"
            )


def _test_words(test: Json) -> str:
    classes, holdout = test["classes"], test["holdout"]
    words = f"{test['images']:,} images of {test['source']}, {len(classes)} classes from {classes[0]} to {classes[-1]}"
    if test["train"]:
        words += f", after learning from {test['train']['images']:,} of {test['train']['source']}"
    if holdout:
        words += f", held out with share {holdout['share']:g}, seed {holdout['seed']} ({holdout['names_checksum'][:8]})"
    return words
