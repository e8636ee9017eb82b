"""Which labels a score may use: random splits with a given number of labels per class, and stratified folds."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from stepclr.errors import StepclrError

LabelsPerClass = int | str  # "all" for every label
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """The images of train whose labels may be used, and a seed for everything else that is random.

    `number` counts the splits with the same `labels_per_class`.
    """

    labels_per_class: LabelsPerClass
    number: int
    indices: Indices
    seed: int


def parse_labels_per_class(given: object) -> list[LabelsPerClass]:
    """The values in 10, "all", "1,10,all" or a sequence of such; StepclrError for anything else."""
    if isinstance(given, str):
        parts: Sequence[object] = given.split(",")
    elif isinstance(given, Sequence):
        parts = given
    else:
        parts = [given]
    values: list[LabelsPerClass] = []
    for part in parts:
        text = str(part).strip()
        if text != "all" and not (text.isdecimal() and int(text) > 0):
            raise StepclrError(f'labels_per_class must be counts from 1 up or "all", such as 1,10,all, not {text!r}')
        values.append("all" if text == "all" else int(text))
    if not values:
        raise StepclrError('labels_per_class is empty; give counts from 1 up or "all", such as 1,10,all')
    return list(dict.fromkeys(values))


def label_splits(
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
    labels_per_class: Sequence[LabelsPerClass],
    draws: int,
    seed: int,
) -> list[Split]:
    """`draws` splits for each of `labels_per_class` (one for "all"): first all those with number 0, then number 1, ...

    A split is a function of the labels and (seed, labels_per_class, number) alone. Labels are positions in `classes`.
    Raises StepclrError where a class has fewer labels than asked for.
    """
    splits = []
    for number in range(draws):
        for per_class in labels_per_class:
            if per_class != "all" or number == 0:
                indices = _draw(labels, classes, per_class, seed, number)
                splits.append(Split(per_class, number, indices, mix_seed(seed, _as_number(per_class), number)))
    return splits


def _draw(labels: Indices, classes: Sequence[str], per_class: LabelsPerClass, seed: int, number: int) -> Indices:
    members = [np.flatnonzero(labels == label) for label in range(len(classes))]
    rarest = min(range(len(classes)), key=lambda label: len(members[label]))
    available = len(members[rarest])
    if available < max(1, _as_number(per_class)):
        raise StepclrError(
            f"labels_per_class is {per_class}, but class {classes[rarest]!r} of train has {available} labels; "
            f"ask for at most {available}"
        )
    if per_class == "all":
        return np.arange(len(labels))
    generator = np.random.default_rng([seed, _as_number(per_class), number])
    return np.sort(np.concatenate([generator.choice(of_class, int(per_class), replace=False) for of_class in members]))


def _as_number(per_class: LabelsPerClass) -> int:
    return 0 if per_class == "all" else int(per_class)


def mix_seed(*key: int) -> int:
    """A seed that depends on every number of `key`, and is unrelated to the seeds of neighboring keys."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def folds(labels: Int[np.ndarray, " n"], parts: int, seed: int) -> list[tuple[Indices, Indices]]:
    """(indices to fit on, indices held out) of stratified folds, at most as many as the commonest class has labels.

    A class with one label is never held out: without it, there would be nothing to fit the class to. There are no folds
    where there is nothing to hold out.
    """
    counts = np.bincount(labels)
    parts = min(parts, int(counts.max()))
    if parts < 2:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer labels than folds
        halves = list(StratifiedKFold(parts, shuffle=True, random_state=seed).split(labels, labels))
    pairs = []
    for _, members in halves:
        held_out = members[counts[labels[members]] > 1]
        if len(held_out):
            pairs.append((np.setdiff1d(np.arange(len(labels)), held_out), held_out))
    return pairs
