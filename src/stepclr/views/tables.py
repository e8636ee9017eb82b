"""The published tables of AutoAugment (Cubuk et al. 2019) and RandAugment (2020), as torchvision has them."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torchvision.transforms import v2

OPS = (*v2.RandAugment._AUGMENTATION_SPACE, "Invert")  # the first is Identity
TABLES = tuple(policy.value for policy in v2.AutoAugmentPolicy)
LEVELS = {v2.AutoAugment: 10, v2.RandAugment: 31}  # steps of each scale of magnitudes


@dataclass(frozen=True)
class Table:
    """Ops with their probabilities and magnitudes; those in a row come one after the other."""

    op: Int[np.ndarray, "rows ops"]  # places in OPS
    p: Float[np.ndarray, "rows ops"]
    magnitude: Float[np.ndarray, "rows ops"]  # in the op's own unit, as pixels or degrees
    signed: Bool[np.ndarray, "rows ops"]  # whether the magnitude's sign is drawn


@cache
def auto_augment(table: str, size: int) -> Table:
    """The 25 sub-policies of two ops each that were found on that data set, for views of this size."""
    return _table(v2.AutoAugment, v2.AutoAugment(v2.AutoAugmentPolicy(table))._policies, size)


@cache
def rand_augment(magnitude: int, size: int) -> Table:
    """The 14 ops at one magnitude of 0 .. 30, for views of this size."""
    return _table(v2.RandAugment, [[(name, 1.0, magnitude)] for name in v2.RandAugment._AUGMENTATION_SPACE], size)


def _table(source: Any, rows: list[Any], size: int) -> Table:
    space = source._AUGMENTATION_SPACE

    def magnitude(name: str, level: int | None) -> float:
        scale = space[name][0](LEVELS[source], size, size)
        return 0.0 if scale is None else float(scale[level])

    return Table(
        op=np.array([[OPS.index(name) for name, _, _ in row] for row in rows]),
        p=np.array([[p for _, p, _ in row] for row in rows]),
        magnitude=np.array([[magnitude(name, level) for name, _, level in row] for row in rows]),
        signed=np.array([[space[name][1] for name, _, _ in row] for row in rows]),
    )
