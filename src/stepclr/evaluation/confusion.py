"""Which classes are taken for which, and by which images: the part of evaluation.json that says where scores end."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from stepclr.evaluation.splits import Budget

PAIRS, EXAMPLES = 5, 4  # that are named
MOST = 200  # classes; of more a matrix is no longer for reading


def confusion(
    method: str,
    budget: Budget,
    predictions: Sequence[Int[np.ndarray, " m"]],
    truth: Int[np.ndarray, " m"],
    classes: Sequence[str],
    names: Sequence[str],
) -> dict[str, Any]:
    """`matrix` [C][C]: how often images of a class (row) were taken for another (column), over all draws.

    `pairs`: the PAIRS most frequent mistakes, each with the names of the EXAMPLES images that it befell most often.
    """
    n = len(classes)
    every = np.concatenate([truth * n + predicted for predicted in predictions])
    matrix = np.bincount(every, minlength=n * n).reshape(n, n)
    mistakes = np.where(np.eye(n, dtype=bool), 0, matrix)
    pairs = []
    for place in np.argsort(-mistakes, axis=None, kind="stable")[:PAIRS]:
        is_, taken_for = (int(k) for k in np.unravel_index(place, mistakes.shape))
        if mistakes[is_, taken_for]:
            times = sum(((truth == is_) & (predicted == taken_for)).astype(int) for predicted in predictions)
            some = np.argsort(-times, kind="stable")[: min(EXAMPLES, int((times > 0).sum()))]
            pairs.append(
                {
                    "is": classes[is_],
                    "taken_for": classes[taken_for],
                    "times": int(mistakes[is_, taken_for]),
                    "names": [names[k] for k in some],
                }
            )
    return {
        "method": method,
        "labels_per_class": budget,
        "classes": list(classes),
        "matrix": matrix.tolist(),
        "pairs": pairs,
    }
