"""Step 7 on a page: the label budget beside its baselines, the confusion matrix, the protocol in words."""

from typing import Any

import numpy as np

from stepclr.data.sources import open_images
from stepclr.errors import StepclrError
from stepclr.tools.images import thumbnail_uri
from stepclr.tools.report.context import Material
from stepclr.tools.report.plots import budgets, confusion
from stepclr.tools.scores import budget_words, cell, paired_lines

Json = dict[str, Any]
METHODS = {
    "pixels": "raw pixels, linear layer",
    "random": "the same encoder, not trained, linear layer",
    "scratch": "the same encoder, trained on those labels alone",
    "simclr": "pretrained, frozen, linear layer",
    "finetuned": "pretrained, then trained on those labels",
    "knn": "pretrained, frozen, weighted kNN",
}


def evaluation(made: Material) -> Json:
    """Curve, table, confusion and protocol of evaluation.json; where there is none, how to make one."""
    if made.scores is None:
        return {"missing": True}
    try:
        return _told(made.scores)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StepclrError(f"{made.run.folder / 'evaluation.json'} is damaged: {error}") from None


def _told(scores: Json) -> Json:
    wanted = list(dict.fromkeys(row["labels_per_class"] for row in scores["rows"]))
    rows = {(row["method"], row["labels_per_class"]): cell(row) for row in scores["rows"]}
    found: Json = {
        "curve": budgets(scores),
        "budgets": [budget_words(budget) for budget in wanted],
        "rows": [
            {
                "method": method,
                "words": METHODS.get(method, ""),
                "cells": [rows.get((method, budget), "") for budget in wanted],
            }
            for method in dict.fromkeys(row["method"] for row in scores["rows"])
        ],
        "paired": list(paired_lines(scores)),
        "protocol": _protocol(scores["protocol"]),
    }
    if scores["protocol"].get("confusion"):
        found |= _confusion(scores)
    return found


def _confusion(scores: Json) -> Json:
    told = scores["protocol"]["confusion"]
    title = f"Confusion of {told['method']} with {budget_words(told['labels_per_class'])}, over all draws"
    matrix = np.array(told["matrix"], dtype=np.int64)
    return {"confusion": confusion(title, told["classes"], matrix), "confused": _imaged(scores)}


def _imaged(scores: Json) -> list[Json]:
    """The most confused pairs, with the images where the test set can still be read."""
    pairs: list[Json] = scores["protocol"]["confusion"]["pairs"]
    try:
        test = open_images(scores["protocol"]["test"]["source"])
        place = {name: i for i, name in enumerate(test.names)}
    except (StepclrError, OSError):
        place = {}
    for pair in pairs:
        at = [place[name] for name in pair["names"] if name in place]
        pair["images"] = []
        if at:
            images, kept = test.read_readable(at)
            pair["images"] = [
                {"src": thumbnail_uri(image), "name": test.names[i]} for image, i in zip(images, kept, strict=True)
            ]
    return pairs


def _protocol(protocol: Json) -> list[str]:
    """What was done, in sentences."""
    train, test = protocol["train"], protocol["test"]
    left = {
        "without a label": "left_out_without_label",
        "of other classes": "left_out_of_other_classes",
        "unreadable": "left_out_unreadable",
    }
    sentences = [
        f"The encoder {protocol['encoder']['name']} was frozen: the hash of its weights is the same before and after.",
        f"Features: {protocol['representation']}.",
        f"Labels came from {train['images']:,} images of {train['source']}; "
        f"scored on {test['images']:,} of {test['source']}.",
        f"{protocol['draws']} draws of the labels, seed {protocol['seed']}; every method saw the same labels in each. "
        f"Error bars are the {protocol['std']}.",
        f"The labels of the test images were {protocol['test_labels']}.",
    ]
    for part in (train, test):
        gone = [f"{part[key]:,} {what}" for what, key in left.items() if part.get(key)]
        if gone:
            sentences.append(f"Left out of {part['source']}: {', '.join(gone)}.")
    return sentences
