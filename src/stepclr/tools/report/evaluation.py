"""Step 7 on a page: the scores next to their baselines, the confusion matrix, the protocol in words."""

from typing import Any

import numpy as np

from stepclr.data.images import ImageSet
from stepclr.errors import StepclrError, fault_of
from stepclr.evaluation.results import Scores
from stepclr.evaluation.splits import labels_words
from stepclr.metrics import in_percent
from stepclr.tools.images import page_uri
from stepclr.tools.methods import method_of, tone_of
from stepclr.tools.notes import notes, overlap_words, unbalanced_words
from stepclr.tools.report.context import Context
from stepclr.tools.report.plots import Bar, confusion, label_budget, method_bars
from stepclr.tools.scores import MEASURES, own_row, paired_lines, score_grid, shown_measures

Json = dict[str, Any]


def evaluation(context: Context) -> Json:
    """Chart, table, confusion and protocol of evaluation.json; {"missing": True} where this encoder has no scores."""
    if context.scores is None or not context.scores.rows:
        return {"missing": True}
    try:
        return _section(context, context.scores)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StepclrError(f"{context.run.folder / 'evaluation.json'} is corrupt: {fault_of(error)}") from None


def _section(context: Context, scores: Scores) -> Json:
    columns, rows = _table(scores, "top1")
    others = [measure for measure in shown_measures(scores) if measure != "top1"]
    several = len({row.labels_per_class for row in scores.rows}) > 1
    section: Json = {
        "curve": label_budget(scores) if several else None,
        "bars": method_bars(scores) if not several else None,
        "budgets": columns,
        "rows": rows,
        "overlap": overlap_words(scores),
        "measures": [(MEASURES[measure], _table(scores, measure)[1]) for measure in others],
        "unbalanced": unbalanced_words(scores),
        "per_class": _per_class(scores),
        "paired": list(paired_lines(scores)),
        "protocol": _protocol(scores),
    }
    confused = scores.protocol.get("confusion")
    if confused:
        labels = labels_words(confused["labels_per_class"])
        title = f"Confusion of {confused['method']} with {labels}, over all draws"
        section["confusion"] = confusion(title, confused["classes"], np.array(confused["matrix"], dtype=np.int64))
        section["confused"] = with_images(confused["pairs"], context.opened(scores.protocol["test"]))
    return section


def _table(scores: Scores, measure: str) -> tuple[list[str], list[Json]]:
    """The numbers of labels in words, and for each method a measure with each of them."""
    columns, grid = score_grid(scores, measure)
    rows = []
    for name, cells in grid.items():
        method = method_of(name, scores)
        ours = method is not None and method.ours
        rows.append({"method": name, "words": method.words if method else "", "ours": ours, "cells": cells})
    return columns, rows


def _per_class(scores: Scores) -> Json | None:
    """The accuracy of each class, the lowest first, of the run's own method with the most labels."""
    row = own_row(scores)
    if row is None or not row.per_class:
        return None
    bars = []
    for name, of_class in sorted(row.per_class.items(), key=lambda item: item[1].mean):
        text = f"{in_percent(of_class.mean)} of {of_class.images:,} images"
        bars.append(Bar(name, of_class.mean, text, tone_of(row.method, scores)))
    return {"title": f"{row.method} with {labels_words(row.labels_per_class, row.labels)}", "bars": bars}


def with_images(rows: list[Json], test: ImageSet | None) -> list[Json]:
    """Rows that have "names" of images, with these "images" where the test set can still be read."""
    index_of = {} if test is None else {name: i for i, name in enumerate(test.names)}
    for row in rows:
        indices = [index_of[name] for name in row["names"] if name in index_of]
        row["images"] = []
        if test is not None and indices:
            for image, i in zip(*test.read_readable(indices), strict=True):
                row["images"].append({"src": page_uri(image), "name": test.names[i]})
    return rows


def _protocol(scores: Scores) -> list[str]:
    """How the scores were made, in sentences."""
    protocol = scores.protocol
    train, test = protocol["train"], protocol["test"]
    reasons = {
        "without a label": "left_out_without_label",
        "of other classes": "left_out_of_other_classes",
        "unreadable": "left_out_unreadable",
    }
    drawn = (
        f"The labels were drawn {protocol['draws']} times (seed {protocol['seed']}); every method saw the same labels "
        f"in each draw. Error bars show the {protocol['std']}."
    )
    if protocol["labels_per_class"] == ["all"]:
        drawn = "All labels were used, so that there is one score of each method and no spread over draws."
    sentences = [
        f"The encoder {protocol['encoder']['name']} was frozen: its checksum was the same before and after.",
        f"Features: {protocol['representation']}.",
        f"The labels came from {train['images']:,} images of {train['source']}{_of_tables(train)}; "
        f"the scores are those on {test['images']:,} images of {test['source']}{_of_tables(test)}.",
        drawn,
        f"The labels of the test images were {protocol['test_labels']}.",
    ]
    if protocol.get("classes_not_in_test"):
        sentences.append(f"The test images lack the classes {', '.join(protocol['classes_not_in_test'])}.")
    if protocol.get("versions"):
        with_threads = f", threads: {protocol['threads']}" if protocol.get("threads") else ""
        packages = ", ".join(f"{package} {version}" for package, version in protocol["versions"].items())
        sentences.append(f"Computed by {packages}{with_threads}.")
    for part in (train, test):
        left_out = [f"{part[key]:,} {words}" for words, key in reasons.items() if part.get(key)]
        if left_out:
            sentences.append(f"Images of {part['source']} that were left out: {', '.join(left_out)}.")
    return sentences + notes(scores)


def _of_tables(part: Json) -> str:
    """The tables that the labels are from, if they are, in parentheses."""
    if not part.get("labels"):
        return ""
    split = f", split {part['split']}" if part["split"] else ""
    return f" (labels of {', '.join(part['labels'])}{split})"
