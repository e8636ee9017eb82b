"""Which labels a score may use: random splits with a number or a share of labels per class, and stratified folds."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from stepclr.errors import StepclrError, check_used, check_whole

LabelsPerClass = int | str  # "1%" for a share of the labels of each class, "all" for every label
Indices = NDArray[np.int64]
SHARES = 2**32  # random numbers of shares have other keys than those of counts, which are smaller
FORMS = 'counts from 1 up, shares such as 1%, or "all"'


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
    """The values in 10, "1%", "all", "1,10%,all" or a sequence of such; StepclrError for anything else.

    100% is "all", and 1.0% is "1%".
    """
    if isinstance(given, str):
        parts: Sequence[object] = given.split(",")
    elif isinstance(given, Sequence):
        parts = given
    else:
        parts = [given]
    if not parts:
        raise StepclrError(f"labels_per_class is empty; give {FORMS}, such as 1,10,all")
    return list(dict.fromkeys(_parse(str(part).strip()) for part in parts))


def _parse(text: str) -> LabelsPerClass:
    if re.fullmatch("[0-9]+", text) and int(text):
        return int(text)
    is_share = re.fullmatch(r"[0-9]*\.?[0-9]+ ?%", text)
    share = f"{100 * share_of(text):g}%" if is_share else ""
    if text == "all" or share == "100%":
        return "all"
    if 0 < share_of(share) < 1:
        return share
    raise StepclrError(f"labels_per_class must be {FORMS}, such as 1,10,all, not {text!r}")


def check_draws(draws: int, default: int, labels_per_class: Sequence[LabelsPerClass]) -> None:
    """Raise StepclrError for no draw, and for several where all labels are used: of these there is one draw."""
    check_whole("draws", draws, 1)
    of_some = any(per_class != "all" for per_class in labels_per_class)
    check_used("draws", draws not in (1, default), of_some, "a part of the labels, such as labels_per_class=10")


def share_of(per_class: LabelsPerClass) -> float:
    """The share from 0 to 1 of the labels that a value such as "1%" means; 0 for a count and for "all"."""
    text = str(per_class)
    return float(text.rstrip("% ")) / 100 if text.endswith("%") else 0.0


def labels_words(per_class: LabelsPerClass, labels: int | None = None) -> str:
    """A value of labels_per_class in words, such as "all labels", "10 labels per class" or "1 % of the labels".

    labels: how many labels a share is, which is then added: "1 % of the labels (130)".
    """
    if per_class == "all":
        return "all labels"
    if isinstance(per_class, int):
        return f"{per_class} label{'' if per_class == 1 else 's'} per class"
    counted = "" if labels is None else f" ({labels:,})"
    return f"{100 * share_of(per_class):g} % of the labels{counted}"


def label_splits(
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
    labels_per_class: Sequence[LabelsPerClass],
    draws: int,
    seed: int,
) -> list[Split]:
    """`draws` splits for each of `labels_per_class`: first all those with number 0, then number 1, ...

    Of all labels there is one, also where a count or a share takes every label of each class: it is that of "all".

    A share is of each class's labels, rounded, and at least one label, so that the split has the classes in the
    proportions of train: SimCLR's 1% and 10% of a balanced set.

    A split is a function of the labels and (seed, labels_per_class, number) alone. Labels are positions in `classes`.
    Raises StepclrError where a class has fewer labels than asked for.
    """
    splits = []
    for number in range(draws):
        for per_class in labels_per_class:
            indices = _draw(labels, classes, per_class, seed, number)
            every_label = len(indices) == len(labels)
            if not every_label or number == 0:
                key = _key("all" if every_label else per_class)
                splits.append(Split(per_class, number, indices, mix_seed(seed, key, number)))
    return splits


def _draw(labels: Indices, classes: Sequence[str], per_class: LabelsPerClass, seed: int, number: int) -> Indices:
    members = [np.flatnonzero(labels == label) for label in range(len(classes))]
    rarest = min(range(len(classes)), key=lambda label: len(members[label]))
    available = len(members[rarest])
    asked = per_class if isinstance(per_class, int) else 1
    if available < asked:
        labels_it_has = "1 label" if available == 1 else f"{available} labels"
        raise StepclrError(
            f"labels_per_class is {per_class}, but class {classes[rarest]!r} of train has {labels_it_has}; "
            f"ask for at most {available}"
        )
    if per_class == "all":
        return np.arange(len(labels))
    generator = np.random.default_rng([seed, _key(per_class), number])
    share = share_of(per_class)
    drawn = []
    for of_class in members:
        size = max(1, int(share * len(of_class) + 0.5)) if share else asked
        drawn.append(generator.choice(of_class, size, replace=False))
    return np.sort(np.concatenate(drawn))


def _key(per_class: LabelsPerClass) -> int:
    """What stands for a value of labels_per_class in the seeds of its splits."""
    if isinstance(per_class, int):
        return per_class
    return 0 if per_class == "all" else SHARES + round(share_of(per_class) * 1e9)


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
