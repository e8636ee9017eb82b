"""Scores that are read back from `evaluation.json` and `finetune.json`, which a user may have edited or cut off."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from stepclr.data.reading import Reading
from stepclr.errors import StepclrError, fault_of
from stepclr.evaluation.results import MEASURES, Scores
from stepclr.evaluation.splits import parse_labels_per_class
from stepclr.io import check_shape

Json = dict[str, Any]
# What the page, the card and the tables read of a protocol, as `check_shape` understands it. Earlier versions had less.
PER_CLASS = int | str
COUNTS = {"*": int}
READING = {"value_range?": [float], "max_pixels?": int, "channels?": int, "damaged_shards?": str}
LEFT_OUT = {f"left_out_{why}?": int for why in ("without_label", "of_other_classes", "unreadable")}
SOURCES = {"source": str, "images": int, "sources?": [str], "labels?": [str], "split?": str}
PART = SOURCES | LEFT_OUT | {"reading?": READING}
PAIR = {"is": str, "taken_for": str, "times": int, "names": [str]}
SHARED = {
    "run": str,
    "classes": [str],
    "classes_not_in_test?": [str],
    "train": PART,
    "images_per_class?": {"train": COUNTS, "test": COUNTS},
    "holdout?": {
        "share": float,
        "seed": int,
        "train?": COUNTS,
        "test?": COUNTS,
        "groups_kept_together?": int,
        "images_in_groups?": int,
        "names_checksum": str,
    },
    "test_images_in_train?": {"identical": int, "near_identical?": int, "clean": int, "examples": [str]},
    "learned_labels?": [
        {"row": str | None, "run": str, "loss": str, "source": str, "labels": int, "scored": bool | None}
    ],
    "seen_unlabeled?": [{"row": str | None, "run": str, "source": str}],
    "test_labels": str,
    "labels_per_class": [PER_CLASS],
    "draws": int,
    "seed": int,
    "std": str,
    "versions?": {"*": str},
    "threads?": int,
    "methods?": {"*": {"l2?": {"*": [float]}}},
    "confusion?": {"method": str, "labels_per_class": PER_CLASS, "classes": [str], "matrix": [[int]], "pairs": [PAIR]},
}
OF_ENCODER = SHARED | {
    "test": PART,
    "started_from?": str,
    "interrupted?": {"done": float, "epochs": float},
    "encoder": {"name": str},
    "encoder_sha256?": {"after": str},
    "test_size?": int,
    "representation": str,
    "linear_evaluation?": {"l2_smallest?": float},
}
COMPARED = ("classes", "test", "labels_per_class")
TO_COMPARE = {name if name in COMPARED else f"{name.removesuffix('?')}?": shape for name, shape in OF_ENCODER.items()}
OF_CLASSIFIER = SHARED | {
    "test": dict | None,
    "of_encoder?": str,
    "unsure?": [{"names": [str], "is": str, "best": (str, float), "second": (str, float)}],
    "classifier": {"file": str, "labels_per_class": PER_CLASS, "labels?": int, "sha256?": str, "top1": float | None}
    | {f"{measure}?": float for measure in MEASURES},
}


def read_scores(path: Path, of_classifier: bool = False, to_compare: bool = False) -> Scores:
    """The scores in a file: `finetune.json` for those `of_classifier`, else `evaluation.json`.

    to_compare: to compare runs alone, which needs no more of the protocol than COMPARED.
    Raises StepclrError that names the file and the first field that is wrong, and OSError where there is no file.
    """
    try:
        stored = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StepclrError(f"{path} is corrupt: {fault_of(error)}") from None
    shape = OF_CLASSIFIER if of_classifier else TO_COMPARE if to_compare else OF_ENCODER
    check_shape(stored, {"rows": [dict], "protocol": shape}, f"{path} is corrupt:")
    protocol = stored["protocol"]
    try:
        for name in ("train", "test"):
            if protocol.get(name) is not None:
                check_shape(protocol[name], PART, f"protocol: {name}:")
                reading_of(protocol[name])
        confused = protocol.get("confusion")
        if confused and np.array(confused["matrix"], np.int64).shape != (len(confused["classes"]),) * 2:
            raise StepclrError("its confusion matrix does not have one row and one column per class")
        scores = Scores.from_dict(stored)
        for row in scores.rows:
            parse_labels_per_class(row.labels_per_class)
        return scores
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise StepclrError(f"{path} is corrupt: {fault_of(error)}") from None


def reading_of(part: Json) -> Reading:
    """How the images of a part of a protocol were read, "train" or "test"; names that `Reading` lacks are ignored."""
    stored = part.get("reading") or {}
    return Reading(**{field.name: stored.get(field.name) for field in fields(Reading)})
