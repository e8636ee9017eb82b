"""The fits of an evaluation while they run: in threads, beside the features of what comes next."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field

import numpy as np

from stepclr.distributed import World
from stepclr.evaluation.results import Fit
from stepclr.evaluation.splits import Split
from stepclr.evaluation.work import Work
from stepclr.pretraining.classifier import AfterStep
from stepclr.threads import Progress

OFTEN = 1.0  # seconds from one report to the next while nothing ends


@dataclass
class _Begun:
    """A fit that was begun: of which method and split, on how many labels, and whether its end was reported.

    since: when its thread began. seconds: of a core that it took. Both None where it was there already.
    """

    method: str
    number: int
    labels: int
    since: float | None = None
    seconds: float | None = None
    future: Future[Fit] = field(init=False)
    reported: bool = False

    def timed(self, fit: Callable[[], Fit]) -> Fit:
        """The fit, made now."""
        self.since, began = time.monotonic(), time.thread_time()
        made = fit()
        self.seconds = time.thread_time() - began
        return made


class Running:
    """The fits of all methods on their splits, and the report of how far they are.

    progress: called with (fits done, fits in all), where each rank of `world` does its share.
    """

    def __init__(
        self, splits: Mapping[str, Sequence[Split]], pool: Executor, work: Work, progress: Progress, world: World
    ) -> None:
        self.splits, self.pool, self.work, self.progress, self.world = splits, pool, work, progress, world
        self.begun: list[_Begun] = []
        self.lock = threading.Lock()  # networks that are trained in threads report too

    def begin(self, method: str, number: int, fit: Fit | Callable[[], Fit]) -> None:
        """Begin the fit of a method on its split of that place; it may be there already."""
        begun = _Begun(method, number, len(self.splits[method][number].indices))
        begun.future = self.pool.submit(begun.timed, fit) if callable(fit) else self.pool.submit(lambda: fit)
        with self.lock:
            self.begun.append(begun)
        self.report()

    def report(self) -> None:
        """Report what is done by now. Raises what a fit raised."""
        with self.lock:
            for fit in self.begun:
                if fit.future.done() and not fit.reported:
                    fit.future.result()
                    fit.reported = True
                    self.work.fit_done(fit.method, fit.labels, fit.seconds)
                    self._count()
            under_way: dict[tuple[str, int], list[float]] = {}
            for fit in self.begun:
                if fit.since is not None and not fit.future.done():
                    under_way.setdefault((fit.method, fit.labels), []).append(time.monotonic() - fit.since)
            self.work.report(under_way)

    def _count(self) -> None:
        total = sum(map(len, self.splits.values()))
        done = sum(fit.reported for fit in self.begun) * self.world.size
        self.progress(min(total, done), total)

    def images(self, method: str) -> Progress:
        """A `Progress` for images that are represented for a method while fits run."""
        count = self.work.representing(method)

        def represented(done: int, of: int) -> None:
            count(done, of)
            self.report()

        return represented

    def training(self, method: str, batch: int) -> AfterStep:
        """What to call after each step of a training of a method that begins now, in its thread."""
        count = self.work.training(method, batch)

        def after_step() -> None:
            count()
            self.report()

        return after_step

    def wait(self) -> None:
        """Until all fits that were begun have ended."""
        waiting = {fit.future for fit in self.begun}
        while waiting:
            waiting = wait(waiting, OFTEN, FIRST_COMPLETED).not_done
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
