"""evaluation.json as a table, and what to do with the encoder next."""

import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.table import Table

from stepclr.errors import StepclrError
from stepclr.model.files import load_encoder
from stepclr.pretraining.run import Run

Row = dict[str, Any]
BASELINES_OF = {"simclr": ("pixels", "random", "scratch"), "finetuned": ("scratch",)}


def stored_scores(run: Run) -> dict[str, Any] | None:
    """evaluation.json of the run; None where there is none. Raises StepclrError if it is damaged."""
    path = run.folder / "evaluation.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        for row in found["rows"]:
            cell(row), budget_words(row["labels_per_class"]), row["method"], row["values"]
        protocol = found["protocol"]
        f"{protocol['classes'][0]} {protocol['test']['source']} {protocol['test']['images']:,}"
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StepclrError(f"{path} is damaged: {error}") from None
    return found


def score_table(scores: dict[str, Any]) -> Table:
    """One row a method, one column a number of labels: top-1, mean +- std over the draws."""
    rows: list[Row] = scores["rows"]
    budgets = dict.fromkeys(row["labels_per_class"] for row in rows)
    table = Table(title="top-1 on the test images")
    table.add_column("method")
    for budget in budgets:
        table.add_column(budget_words(budget), justify="right")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = {row["labels_per_class"]: cell(row) for row in rows if row["method"] == method}
        table.add_row(method, *(cells.get(budget, "") for budget in budgets))
    return table


def paired_lines(scores: dict[str, Any]) -> Iterator[str]:
    """How far ours is above each baseline, paired over the draws: both saw the same labels in each."""
    rows = {(row["method"], row["labels_per_class"]): row for row in scores["rows"]}
    for (method, budget), row in rows.items():
        for other in BASELINES_OF.get(method, ()):
            if len(row["values"]) > 1 and (other, budget) in rows:
                gain = np.subtract(row["values"], rows[other, budget]["values"])
                error = gain.std(ddof=1) / math.sqrt(len(gain))
                yield (
                    f"{method} - {other} at {budget_words(budget)}: {gain.mean():+.3f}, "
                    f"standard error {error:.3f}, above in {int((gain > 0).sum())} of {len(gain)} draws"
                )


def loading_snippet(run: str | os.PathLike[str]) -> str:
    """The three lines of Python that load the encoder of `run` and use it; the shape in them is the encoder's own."""
    features = load_encoder(run).num_features
    return (
        "import stepclr\n"
        f"encoder = stepclr.load_encoder({os.fspath(run)!r})\n"
        f"h = encoder(encoder.preprocess(image))  # a PIL image -> [1, {features}]"
    )


def budget_words(budget: int | str) -> str:
    """As "all labels", or "10 labels a class"."""
    return "all labels" if budget == "all" else f"{budget} label{'s' if budget != 1 else ''} a class"


def cell(row: Row) -> str:
    """mean +- std, where there is one."""
    return f"{row['mean']:.3f}" + (f" +- {row['std']:.3f}" if row["std"] is not None else "")
