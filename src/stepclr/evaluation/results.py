"""What evaluation reports: a score for each method and number of labels, and which classes are confused."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from stepclr.evaluation.splits import LabelsPerClass

EVALUATION, FINETUNING = "evaluation.json", "finetune.json"  # in the folder of a run
PAIRS, EXAMPLES = 5, 4  # most frequent confusions to list, and images to name for each
UNSURE = 12  # images to name of which a classifier is least certain
MAX_CLASSES = 200  # of a confusion matrix that a person can still read


@dataclass(frozen=True)
class Score:
    """Top-1 (0 to 1) of a method: the value of each label split, their mean and sample standard deviation.

    `std` is None where there is one value. `clean_mean`, `clean_std` and `clean_values` are the same of the test images
    that are not in train too; None where no image is in both.
    """

    method: str
    labels_per_class: LabelsPerClass
    mean: float
    std: float | None
    values: list[float]
    clean_mean: float | None = None
    clean_std: float | None = None
    clean_values: list[float] | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of a run and the protocol behind them; as JSON, `evaluation.json` and `finetune.json`."""

    rows: list[Score]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """`{"rows": [{"method", "labels_per_class", "mean", "std", "values"}], "protocol": {...}}`.

        A row has "clean_mean", "clean_std" and "clean_values" too where test images are in train.
        """
        stored = asdict(self)
        for row in stored["rows"]:
            if row["clean_mean"] is None:
                del row["clean_mean"], row["clean_std"], row["clean_values"]
        return stored

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Scores":
        """The inverse of `to_dict`. Raises LookupError or TypeError for another structure."""
        return cls([Score(**row) for row in stored["rows"]], stored["protocol"])


def score(
    method: str,
    labels_per_class: LabelsPerClass,
    predictions: Sequence[Int[np.ndarray, " m"]],
    truth: Int[np.ndarray, " m"],
    clean: Bool[np.ndarray, " m"],
) -> Score:
    """The score of a method from its predictions for each label split, and that on the clean images, if not all are."""
    correct = [predicted == truth for predicted in predictions]
    whole = _summary(correct)
    if clean.all():
        return Score(method, labels_per_class, *whole)
    return Score(method, labels_per_class, *whole, *_summary([of_split[clean] for of_split in correct]))


def _summary(correct: list[Bool[np.ndarray, " m"]]) -> tuple[float, float | None, list[float]]:
    """Mean, sample standard deviation and values of top-1 over the splits."""
    values = [float(of_split.mean()) for of_split in correct]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), std, values


def confusion(
    method: str,
    labels_per_class: LabelsPerClass,
    predictions: Sequence[Int[np.ndarray, " m"]],
    truth: Int[np.ndarray, " m"],
    classes: Sequence[str],
    names: Sequence[str],
) -> dict[str, Any]:
    """Confusion matrix `[C][C]`: how often images of a class (row) were predicted as another (column), over all splits.

    `pairs` lists the PAIRS most frequent mistakes, each with the names of the EXAMPLES images most often mistaken.
    """
    n = len(classes)
    cells = np.concatenate([truth * n + predicted for predicted in predictions])
    matrix = np.bincount(cells, minlength=n * n).reshape(n, n)
    mistakes = np.where(np.eye(n, dtype=bool), 0, matrix)
    pairs = []
    for cell in np.argsort(-mistakes, axis=None, kind="stable")[:PAIRS].tolist():
        actual, predicted_as = divmod(cell, n)
        if not mistakes[actual, predicted_as]:
            break
        times = sum(((truth == actual) & (predicted == predicted_as)).astype(int) for predicted in predictions)
        worst = np.argsort(-times, kind="stable")[: min(EXAMPLES, int((times > 0).sum()))]
        pairs.append(
            {
                "is": classes[actual],
                "taken_for": classes[predicted_as],
                "times": int(mistakes[actual, predicted_as]),
                "names": [names[i] for i in worst],
            }
        )
    return {
        "method": method,
        "labels_per_class": labels_per_class,
        "classes": list(classes),
        "matrix": matrix.tolist(),
        "pairs": pairs,
    }


def least_certain(
    probabilities: Float32[np.ndarray, "m c"],
    truth: Int[np.ndarray, " m"],
    classes: Sequence[str],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """The UNSURE images whose best two classes are nearest to each other in probability, with both and the true one."""
    second, best = np.partition(probabilities, (-2, -1), axis=1)[:, -2:].T
    rows = []
    for i in np.argsort(best - second, kind="stable")[:UNSURE].tolist():
        first, other = np.argsort(-probabilities[i], kind="stable")[:2].tolist()
        rows.append(
            {
                "names": [names[i]],
                "is": classes[truth[i]],
                "best": [classes[first], float(probabilities[i, first])],
                "second": [classes[other], float(probabilities[i, other])],
            }
        )
    return rows
