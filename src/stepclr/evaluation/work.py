"""How long an evaluation still takes: what is left of each kind of work, at the pace that this kind has had so far."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from stepclr.evaluation.baselines import RATES, SCRATCH_BATCH, STATISTICS_IMAGES, trial_steps
from stepclr.evaluation.finetune import FinetuneSettings
from stepclr.evaluation.linear import FOLDS
from stepclr.evaluation.methods import sgd_length
from stepclr.evaluation.seeds import OF_THE_RUN
from stepclr.evaluation.splits import LabelsPerClass, share_of
from stepclr.pretraining.classifier import AfterStep
from stepclr.threads import Progress

# What is expected until it is measured. Seconds of a core for an image that is decoded, and that the run's encoder
# represents; images that are represented in the time of one that is trained on, in float32 and in bfloat16.
DECODED, REPRESENTED = 0.0025, 0.004
TRAINED = {False: 3.0, True: 2.0}
PIXELS = 0.2  # images that the run's encoder represents in the time of one whose pixels are its representation
# Of linear evaluation: operations of a core per second; how often the loss of all folds is evaluated; and what the
# principal axes of n rows take, as a multiple of n^3.
SPEED, EVALUATIONS, AXES = 3e10, 200, 13
TRAINERS = ("scratch", "sgd", "finetuned")  # methods that train networks; the others fit a layer to features
Sizes = Mapping[str, Sequence[tuple[int, int]]]  # of the splits of each method: number, and how many labels


def expected_sizes(
    labels_per_class: Sequence[LabelsPerClass], draws: int, train: int, classes: int
) -> list[tuple[int, int]]:
    """The splits of a method, before the images are known: number, and about how many labels."""
    sizes = []
    for number in range(draws):
        for per_class in labels_per_class:
            if isinstance(per_class, int):
                sizes.append((number, per_class * classes))
            elif per_class != "all":
                sizes.append((number, round(share_of(per_class) * train)))
            elif number == 0:
                sizes.append((number, train))
    return sizes


@dataclass
class Kind:
    """Work of one kind, in units that take about equally long: how much there is, is done, and how long it takes.

    expected: the seconds of a core that a unit takes, until some are timed: `timed` units took `seconds`.
    """

    expected: Callable[[], float]
    total: float = 0.0
    done: float = 0.0
    timed: float = 0.0
    seconds: float = 0.0

    @property
    def pace(self) -> float:
        """Seconds of a core for a unit."""
        return self.seconds / self.timed if self.timed else self.expected()

    @property
    def left(self) -> float:
        """Seconds of a core for what is not done."""
        return max(0.0, self.total - self.done) * self.pace


class Work:
    """Counts what is done and what there is of each kind of work, and calls `left` with the seconds that are left.

    Kinds are images that are decoded, that an encoder represents (the run's, or another one of a method's name), and
    that a method trains on, and the fits of a method on so many labels.

    features, pixels: numbers in h of the encoder and of the baseline pixels. others: methods with an encoder of their
    own. bf16: whether networks are trained in bfloat16. ranks: processes that share the splits. seeds: further runs
    that are scored as the first one is, without baselines.
    """

    def __init__(
        self,
        left: Callable[[float], object],
        classes: int,
        features: int,
        pixels: int,
        scratch_steps: int,
        others: Collection[str] = (),
        bf16: bool = False,
        ranks: int = 1,
        seeds: int = 0,
    ) -> None:
        self.left, self.classes, self.features, self.pixels = left, classes, features, pixels
        self.scratch_steps, self.ranks, self.seeds = scratch_steps, ranks, seeds
        self.threads = torch.get_num_threads()
        self.decoded = Kind(lambda: DECODED)
        self.represented = Kind(lambda: REPRESENTED)
        self.of_others = {name: Kind(lambda: self.represented.pace) for name in others}
        self.trained = {name: Kind(lambda: TRAINED[bf16] * self.represented.pace) for name in TRAINERS}
        self.fitted: dict[tuple[str, int], Kind] = {}
        self.under_way: Mapping[tuple[str, int], Sequence[float]] = {}
        self.lock = threading.Lock()  # networks are trained in several threads

    def kinds(self) -> list[Kind]:
        """All kinds of work there are."""
        of_methods = [*self.of_others.values(), *self.trained.values(), *self.fitted.values()]
        return [self.decoded, self.represented, *of_methods]

    def add(self, kind: Kind, units: float, seconds: float | None = None) -> None:
        """Note that so much of a kind is done, and report; `seconds` of a core, where it was timed."""
        with self.lock:
            kind.done += units
            if seconds is not None:
                kind.timed += units
                kind.seconds += seconds
            self._say()

    def report(self, under_way: Mapping[tuple[str, int], Sequence[float]]) -> None:
        """Report, given the fits that have not ended, by method and labels: for how many seconds each has run."""
        with self.lock:
            self.under_way = under_way
            self._say()

    def _say(self) -> None:
        left, longest = sum(kind.left for kind in self.kinds()), 0.0
        for of, kind in self.fitted.items():
            had = [min(seconds, kind.pace) for seconds in self.under_way.get(of, [])]
            left -= self.ranks * sum(had)
            if kind.left:
                longest = max(longest, kind.pace - max(had, default=0.0))
        # A fit has one core, so that the longest one may be all there is in the end.
        self.left(max(0.0, left / self.threads, longest))

    def images(self, kind: Kind, each: float = 1.0, timed: bool = True) -> Progress:
        """A `Progress` for images of a kind, each of which counts as `each` units.

        timed: whether their time tells the pace of the kind; while fits run, it is not that of the images alone.
        """
        before, size, began = 0, 0, 0.0

        def count(done: int, of: int) -> None:
            nonlocal before, size, began
            now, first = time.monotonic(), of != size or done <= before
            if first:  # of another set: nobody told when its first images began
                before, size = 0, of
            seconds = None if first or not timed else (now - began) * self.threads
            self.add(kind, each * (done - before), seconds)
            before, began = done, now

        return count

    def representing(self, method: str) -> Progress:
        """A `Progress` for the images that are represented for a method, while fits run."""
        if method in self.of_others:
            return self.images(self.of_others[method])
        return self.images(self.represented, PIXELS if method == "pixels" else 1.0, timed=False)

    def training(self, method: str, batch: int) -> AfterStep:
        """What to call after each step of a training that begins now, in its thread."""
        kind, began = self.trained[method], time.thread_time()

        def after_step() -> None:
            nonlocal began
            now = time.thread_time()
            self.add(kind, 1.0 * batch * self.ranks, (now - began) * self.ranks * torch.get_num_threads())
            began = now

        return after_step

    def fit_done(self, method: str, labels: int, seconds: float | None) -> None:
        """Note the end of a fit on features, which took `seconds` of a core where it was timed."""
        if (method, labels) in self.fitted:
            self.add(self.fitted[method, labels], float(self.ranks), seconds and seconds * self.ranks)

    def expect(self, sizes: Sizes, train: int, test: int, opened: int = 0) -> None:
        """Set what is left: the fits of these splits, and before them `opened` images to decode and to represent."""
        for kind in self.kinds():
            kind.total = kind.done
        self.fitted = {}
        self.decoded.total += opened
        self.represented.total += opened + self.seeds * (train + test)
        for name, splits in sizes.items():
            if name in OF_THE_RUN:
                splits = [*splits] * (1 + self.seeds)
            numbers = {number for number, _ in splits}
            if name == "pixels":
                self.represented.total += PIXELS * (train + test)
            elif name == "random":
                drawn = sum(min(train, sum(size for other, size in splits if other == number)) for number in numbers)
                self.represented.total += drawn + len(numbers) * (STATISTICS_IMAGES + test)
            elif name in self.of_others:
                self.of_others[name].total += train + test
            if name in self.trained:
                self.represented.total += test * len(splits)
                self.trained[name].total += sum(self._trained_on(name, labels) for _, labels in splits)
                if name == "scratch":
                    self._expect_trials({labels for _, labels in splits})
            elif name != "knn":  # which takes no time
                for labels, count in Counter(labels for _, labels in splits).items():
                    self.fitted[name, labels] = Kind(self._expected_fit(name, labels), float(count))

    def _trained_on(self, name: str, labels: int) -> int:
        """How many images a method trains on for one split: its batches in all steps."""
        if name == "scratch":
            return self.scratch_steps * min(SCRATCH_BATCH, labels)
        if name == "sgd":
            steps, batch = sgd_length(labels)
            return steps * batch
        training = FinetuneSettings().training(labels)
        return training.steps * training.batch_size

    def _expect_trials(self, sizes: Collection[int]) -> None:
        """Add the trials of each rate that scratch chooses from, on two folds of a split of each size."""
        for labels in sizes:
            if labels > self.classes:  # with one label a class there is nothing to hold out
                steps = len(RATES) * trial_steps(self.scratch_steps)
                self.trained["scratch"].total += 2 * steps * min(SCRATCH_BATCH, labels // 2)
                self.represented.total += len(RATES) * labels

    def _expected_fit(self, name: str, labels: int) -> Callable[[], float]:
        """The seconds of a core for a fit on so many labels, once the features are there."""
        axes = min(labels, self.pixels if name == "pixels" else self.features)
        operations = AXES * axes**3 + EVALUATIONS * 4 * labels * axes * FOLDS * self.classes
        return lambda: operations / SPEED
