"""How far a method is above another: paired differences, and what is within their noise."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stepclr.evaluation.results import Score, Scores
from stepclr.tools.methods import baselines_of

CLEAR = 2  # standard errors from which a difference counts as one


class Gain(NamedTuple):
    """How far a method is above the method `over`, pair by pair: the mean in points and its standard error (None for
    one pair), and in how many pairs it is above; `chance` is a standard error too where there is one pair."""

    over: str
    mean: float
    error: float | None
    above: int
    chance: float

    @property
    def level(self) -> str:
        """ "good" or "bad" where it is clearly above or below, "even" within CLEAR standard errors."""
        if abs(self.mean) <= CLEAR * self.chance:
            return "even"
        return "good" if self.mean > 0 else "bad"


def gains_of(row: Score, scores: Scores, measure: str = "top1") -> list[Gain]:
    """How far a row of ours is above each of its baselines, where both saw the same labels in each draw.

    Where test images are in train too, on the clean ones alone.
    """
    alike = {other.method: other for other in scores.rows if other.labels_per_class == row.labels_per_class}
    gains = []
    clean = row.clean_mean is not None
    own = row.summary(measure, clean)
    in_test = (scores.protocol.get("images_per_class") or {}).get("test", {})  # earlier versions do not have it
    images = (scores.protocol["test_images_in_train"]["clean"] if clean else sum(in_test.values())) or 1
    for name in baselines_of(row.method, scores):
        other = alike[name].summary(measure, clean) if name in alike else None
        if own and other:
            gains.append(paired(name, own.values, other.values, images))
    return gains


def paired(over: str, values: ArrayLike, others: ArrayLike, images: int) -> Gain:
    """How far `values` (0 to 1) are above `others`: scores of the same draws, or hits (1 or 0) of the same images.

    images: those that each value is the share of. They decide what chance is where there is one pair, as if the two
    methods had been scored on different images: which of the same ones each has right is not stored.
    """
    points = 100 * np.subtract(values, others, dtype=np.float64)
    error = float(points.std(ddof=1)) / math.sqrt(len(points)) if len(points) > 1 else None
    shares = np.array([values, others]).mean(1)
    chance = 100 * math.sqrt((shares * (1 - shares)).sum() / images) if error is None else error
    return Gain(over, float(points.mean()), error, int((points > 0).sum()), chance)
