"""What evaluation reports: a score for each method and number of labels, and which classes are confused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from stepclr.evaluation.splits import LabelsPerClass
from stepclr.io import from_json

EVALUATION, FINETUNING = "evaluation.json", "finetune.json"  # in the folder of a run
PAIRS, EXAMPLES = 5, 4  # most frequent confusions to list, and images to name for each
UNSURE = 12  # images to name of which a classifier is least certain
MAX_CLASSES = 200  # of a confusion matrix that a person can still read
RANKED, RANKED_CLASSES = 5, 20  # top-5 is scored where there are at least 20 classes
MEASURES = ("balanced_accuracy", "macro_f1", "top5")  # besides top-1


class Fit(NamedTuple):
    """What a method predicts for the test images, as `ranking` has it, and the value that it chose on the split."""

    ranked: Int[np.ndarray, "m k"]
    chosen: float

    @property
    def predicted(self) -> Int[np.ndarray, " m"]:
        """The most likely class of each test image."""
        return self.ranked[:, 0]


Predictions = dict[tuple[str, LabelsPerClass], list[Fit]]  # of each method with each number of labels


def ranking(scores: Float[np.ndarray, "m c"]) -> Int[np.ndarray, "m k"]:
    """The classes with the highest scores, highest first: the best one, or the best 5 from 20 classes up.

    Of equal scores the lower class is first. A score of -inf is no prediction: -1 stands in its place.
    """
    best: Int[np.ndarray, "m k"] = np.argmax(scores, axis=1)[:, None]
    if scores.shape[1] < RANKED_CLASSES:
        return best
    best = np.argsort(-scores, axis=1, kind="stable")[:, :RANKED]
    best[np.take_along_axis(scores, best, 1) == -np.inf] = -1
    return best


@dataclass(frozen=True)
class Summary:
    """A measure (0 to 1): the value of each label split, their mean and sample standard deviation (None for one)."""

    mean: float
    std: float | None
    values: list[float]


@dataclass(frozen=True)
class ClassScore:
    """The accuracy (0 to 1) on the test images of one class: mean and sample standard deviation over the splits."""

    images: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Score:
    """Top-1 (0 to 1) of a method: the value of each label split, their mean and sample standard deviation.

    `std` is None where there is one value. `labels` counts the labels of a split.

    `balanced_accuracy` is the mean of the accuracies of the classes, and `macro_f1` that of their F1 scores 2 P R /
    (P + R): each class counts alike, however many test images it has. `top5` is the share of images whose class is
    among the five most likely ones; None where there are fewer than 20 classes. `per_class` has the accuracy of each
    class. Classes without a test image are left out of all of these; scikit-learn's macro F1 does so where `labels` are
    the others, and else counts a 0 for each such class that is predicted.

    The fields `clean_...` are the same of the test images that are not in train too; None where no image is in both.
    """

    method: str
    labels_per_class: LabelsPerClass
    mean: float
    std: float | None
    values: list[float]
    labels: int | None = None
    balanced_accuracy: Summary | None = None
    macro_f1: Summary | None = None
    top5: Summary | None = None
    per_class: dict[str, ClassScore] | None = None
    clean_mean: float | None = None
    clean_std: float | None = None
    clean_values: list[float] | None = None
    clean_balanced_accuracy: Summary | None = None
    clean_macro_f1: Summary | None = None
    clean_top5: Summary | None = None

    def summary(self, measure: str, clean: bool = False) -> Summary | None:
        """The measure "top1", or one of MEASURES, on all test images or on the clean ones; None where it has none."""
        if measure != "top1":
            return getattr(self, f"clean_{measure}" if clean else measure)
        if not clean:
            return Summary(self.mean, self.std, self.values)
        if self.clean_mean is None or self.clean_values is None:
            return None
        return Summary(self.clean_mean, self.clean_std, self.clean_values)


@dataclass(frozen=True)
class Scores:
    """The scores of a run and the protocol behind them; as JSON, `evaluation.json` and `finetune.json`."""

    rows: list[Score]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """`{"rows": [{"method", "labels_per_class", "mean", "std", "values", ...}], "protocol": {...}}`.

        A row has the other fields of `Score` too, except those that are None.
        """
        stored = asdict(self)
        for row in stored["rows"]:
            for name in [name for name, value in row.items() if value is None and name != "std"]:
                del row[name]
        return stored

    def to_json(self) -> str:
        """The text of the file: `to_dict`, where a number that was given as NumPy's is a plain one."""
        return json.dumps(self.to_dict(), indent=2, default=np.generic.item) + "\n"

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Scores":
        """The inverse of `to_dict`. Raises StepclrError for a row that lacks a field, or has one of another type."""
        return cls([_stored_score(row, number) for number, row in enumerate(stored["rows"], 1)], stored["protocol"])


def _stored_score(row: dict[str, Any], number: int) -> Score:
    where = f"row {number}"
    stored = {field.name: field.default for field in fields(Score) if field.default is not MISSING} | row
    for name in (*MEASURES, *(f"clean_{measure}" for measure in MEASURES)):
        if stored[name] is not None:
            stored[name] = from_json(Summary, stored[name], f"{name} of {where}")
    if stored["per_class"] is not None:
        of_classes = dict(stored["per_class"]).items()
        stored["per_class"] = {name: from_json(ClassScore, value, f"{name!r} of {where}") for name, value in of_classes}
    return from_json(Score, stored, where)


def score(
    method: str,
    labels_per_class: LabelsPerClass,
    labels: int,
    ranked: Sequence[Int[np.ndarray, "m k"]],
    truth: Int[np.ndarray, " m"],
    clean: Bool[np.ndarray, " m"],
    classes: Sequence[str],
) -> Score:
    """The score of a method from its `ranking` for each label split, and that on the clean images, if not all are.

    labels: the number of labels of a split. truth: positions in `classes`.
    """
    fields = fields_of(summaries(ranked, truth))
    if not clean.all():
        fields |= fields_of(summaries([of_split[clean] for of_split in ranked], truth[clean]), clean=True)
    per_class = _per_class(ranked, truth, classes)
    return Score(method, labels_per_class, labels=labels, per_class=per_class, **fields)


def fields_of(measured: Mapping[str, Summary], clean: bool = False) -> dict[str, Any]:
    """The fields of a `Score` that hold these measures: "top1", which has fields of its own, and any of MEASURES."""
    fields: dict[str, Any] = {name: summary for name, summary in measured.items() if name != "top1"}
    if "top1" in measured:
        fields |= asdict(measured["top1"])
    return {f"clean_{name}": value for name, value in fields.items()} if clean else fields


def summaries(ranked: Sequence[Int[np.ndarray, "m k"]], truth: Int[np.ndarray, " m"]) -> dict[str, Summary]:
    """Top-1 as "top1", and MEASURES, over the splits; no "top5" where one class is ranked."""
    of_splits = [measures(of_split, truth) for of_split in ranked]
    return {name: summarize([of_split[name] for of_split in of_splits]) for name in of_splits[0]}


def summarize(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation of values, and the values."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), std, [float(value) for value in values])


def measures(ranked: Int[np.ndarray, "m k"], truth: Int[np.ndarray, " m"]) -> dict[str, float]:
    """Top-1 as "top1", and MEASURES, of one `ranking`: each from 0 to 1, over the classes that `truth` contains."""
    predicted = ranked[:, 0]
    classes = int(max(truth.max(), predicted.max())) + 1
    in_truth = np.bincount(truth, minlength=classes)
    as_predicted = np.bincount(predicted, minlength=classes)
    hits = np.bincount(truth[truth == predicted], minlength=classes)
    present = in_truth > 0
    # F1 = 2 P R / (P + R) = 2 hits / (images of the class + images taken for it), which is never 0 / 0.
    f1 = 2 * hits[present] / (in_truth + as_predicted)[present]
    values = {
        "top1": float((predicted == truth).mean()),
        "balanced_accuracy": float((hits[present] / in_truth[present]).mean()),
        "macro_f1": float(f1.mean()),
    }
    if ranked.shape[1] > 1:
        values["top5"] = float((ranked == truth[:, None]).any(1).mean())
    return values


def _per_class(
    ranked: Sequence[Int[np.ndarray, "m k"]], truth: Int[np.ndarray, " m"], classes: Sequence[str]
) -> dict[str, ClassScore]:
    scores = {}
    for label in np.unique(truth).tolist():
        of_class = truth == label
        accuracy = summarize([float((of_split[of_class, 0] == label).mean()) for of_split in ranked])
        scores[classes[label]] = ClassScore(int(of_class.sum()), accuracy.mean, accuracy.std)
    return scores


def first_confusion(
    predictions: Predictions,
    labels: Mapping[LabelsPerClass, int],
    own: Sequence[str],
    truth: Int[np.ndarray, " m"],
    classes: Sequence[str],
    names: Sequence[str],
) -> dict[str, Any] | None:
    """Which classes the first of the `own` methods that is scored confuses, with the most `labels` that it had.

    None where only baselines are scored, or there are too many classes for a readable matrix.
    """
    if len(classes) > MAX_CLASSES:
        return None
    for name in own:
        budgets = [per_class for method, per_class in predictions if method == name]
        if budgets:
            per_class = max(budgets, key=labels.__getitem__)
            fits = predictions[name, per_class]
            return confusion(name, per_class, [fit.predicted for fit in fits], truth, classes, names)
    return None


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


def margins(probabilities: Float32[np.ndarray, "m c"]) -> Float32[np.ndarray, " m"]:
    """How certain each prediction is: the probability of the best class minus that of the second best, if any."""
    if probabilities.shape[1] == 1:
        return probabilities[:, 0]
    second, best = np.partition(probabilities, (-2, -1), axis=1)[:, -2:].T
    return best - second


def least_certain(
    probabilities: Float32[np.ndarray, "m c"],
    truth: Int[np.ndarray, " m"],
    classes: Sequence[str],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """The UNSURE images whose best two classes are nearest to each other in probability, with both and the true one."""
    rows = []
    for i in np.argsort(margins(probabilities), kind="stable")[:UNSURE].tolist():
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
