"""The log of a run, metrics.jsonl, by columns: what its health is judged from."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Json = dict[str, Any]


@dataclass(frozen=True)
class Log:
    """The columns of metrics.jsonl: of each field the finite numbers."""

    lines: list[Json]

    def of(self, name: str, until: int | float = math.inf) -> NDArray[np.float64]:
        """A column, up to a step."""
        values = [line.get(name) for line in self.lines if line["step"] <= until]
        return np.array([v for v in values if isinstance(v, int | float) and math.isfinite(v)], np.float64)

    def first(self, name: str) -> float:
        return mean(self.of(name)[:1])

    def last(self, name: str) -> float:
        return mean(self.of(name)[-1:])

    def end(self, name: str) -> float:
        """Mean of a column's last quarter, or of its last two lines if that is more: one batch alone is noisy."""
        values = self.of(name)
        return mean(values[-max(2, len(values) // 4) :])


def mean(values: NDArray[np.float64]) -> float:
    """Their mean, or NaN where there are none."""
    return float(values.mean()) if len(values) else math.nan
