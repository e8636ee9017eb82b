"""Which labels a score may use: stratified draws of a budget, and stratified folds of a draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from stepclr.errors import StepclrError

Budget = int | str  # labels a class; "all" for every one
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Draw:
    """One draw of a budget: the rows of train whose labels may be used, and a seed for whatever else it takes."""

    budget: Budget
    number: int
    rows: Rows
    seed: int


def read_budgets(given: object) -> list[Budget]:
    """The budgets in 10, "all", "1,10,all" or a sequence of such; StepclrError for anything else."""
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    budgets: list[Budget] = []
    for part in parts:
        text = str(part).strip()
        if text != "all" and not (text.isdecimal() and int(text) > 0):
            raise StepclrError(f"--labels-per-class takes counts from 1 up, or all, as in 1,10,all; not {text!r}")
        budgets.append("all" if text == "all" else int(text))
    if not budgets:
        raise StepclrError("--labels-per-class names no budget; give counts from 1 up, or all, as in 1,10,all")
    return list(dict.fromkeys(budgets))


def draw_all(
    labels: Int[np.ndarray, " n"], classes: Sequence[str], budgets: Sequence[Budget], count: int, seed: int
) -> list[Draw]:
    """`count` draws of every budget (one of "all"), the first draw of each before the second of any.

    A draw is a function of the labels and (seed, budget, number) alone. Labels are positions in `classes`.
    Raises StepclrError where a class has fewer labels than a budget asks for.
    """
    return [
        Draw(budget, number, _rows(labels, classes, budget, seed, number), mix(seed, _as_number(budget), number))
        for number in range(count)
        for budget in budgets
        if budget != "all" or number == 0
    ]


def _rows(labels: Rows, classes: Sequence[str], budget: Budget, seed: int, number: int) -> Rows:
    members = [np.flatnonzero(labels == label) for label in range(len(classes))]
    rarest = min(range(len(classes)), key=lambda label: len(members[label]))
    has = len(members[rarest])
    if has < max(1, _as_number(budget)):
        raise StepclrError(
            f"--labels-per-class {budget}: class {classes[rarest]!r} of train has {has} labels; ask for at most {has}"
        )
    if budget == "all":
        return np.arange(len(labels))
    generator = np.random.default_rng([seed, _as_number(budget), number])
    return np.sort(np.concatenate([generator.choice(own, int(budget), replace=False) for own in members]))


def _as_number(budget: Budget) -> int:
    return 0 if budget == "all" else int(budget)


def mix(*key: int) -> int:
    """A seed that is a function of all of `key`, unlike those of the keys next to it."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def folds(labels: Int[np.ndarray, " n"], parts: int, seed: int) -> list[tuple[Rows, Rows]]:
    """(rows to fit on, rows held out) of stratified folds, no more than the rarest class has rows; none below 2."""
    parts = min(parts, int(np.bincount(labels).min()))
    if parts < 2:
        return []
    return list(StratifiedKFold(parts, shuffle=True, random_state=seed).split(labels, labels))
