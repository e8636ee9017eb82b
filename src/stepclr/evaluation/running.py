"""The fits of an evaluation while they run: in threads, beside the features of what comes next."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass

import numpy as np

from stepclr.distributed import World
from stepclr.evaluation.results import Fit
from stepclr.evaluation.splits import Split
from stepclr.evaluation.work import Work
from stepclr.threads import Progress


@dataclass
class _Begun:
    """A fit that was begun: of which method and split, on how many labels, when, and whether its end was reported."""

    method: str
    number: int
    labels: int
    future: Future[Fit]
    since: float
    reported: bool = False


class Running:
    """The fits of all methods on their splits, and the report of how far they are.

    progress: called with (fits done, fits in all), where each rank of `world` does its share.
    """

    def __init__(
        self, splits: Mapping[str, Sequence[Split]], pool: Executor, work: Work, progress: Progress, world: World
    ) -> None:
        self.splits, self.pool, self.work, self.progress, self.world = splits, pool, work, progress, world
        self.begun: list[_Begun] = []

    def begin(self, method: str, number: int, fit: Fit | Callable[[], Fit]) -> None:
        """Begin the fit of a method on its split of that place; it may be there already."""
        future = self.pool.submit(fit if callable(fit) else lambda: fit)
        labels = len(self.splits[method][number].indices)
        self.begun.append(_Begun(method, number, labels, future, time.monotonic()))
        self.report()

    def report(self) -> None:
        """Report what is done by now. Raises what a fit raised."""
        self.work.under_way = 0.0
        for fit in self.begun:
            if not fit.future.done():
                self.work.under_way += self.work.part_of_split(fit.method, fit.labels, time.monotonic() - fit.since)
            elif not fit.reported:
                fit.future.result()
                fit.reported = True
                self.work.add(self.world.size * self.work.of_split(fit.method, fit.labels))
                self._count()

    def _count(self) -> None:
        total = sum(map(len, self.splits.values()))
        done = sum(fit.reported for fit in self.begun) * self.world.size
        self.progress(min(total, done), total)

    def images(self, each: float) -> Progress:
        """A `Progress` for images that are represented while fits run, each of which counts as `each` units."""
        count = self.work.images(each)

        def represented(done: int, of: int) -> None:
            count(done, of)
            self.report()

        return represented

    def wait(self) -> None:
        """Until all fits that were begun have ended."""
        for _ in as_completed([fit.future for fit in self.begun]):
            self.report()

    def gathered(self, method: str) -> list[Fit]:
        """The fits of a method, by all ranks, in the order of its splits."""
        computed = {}
        for begun in self.begun:
            if begun.method == method:
                fit = begun.future.result()
                computed[begun.number] = [fit.ranked.tolist(), fit.chosen]
        every = {int(number): fit for of_rank in self.world.objects(computed) for number, fit in of_rank.items()}
        return [Fit(np.array(ranked), chosen) for _, (ranked, chosen) in sorted(every.items())]
