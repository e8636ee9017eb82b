"""How long an evaluation still takes. The unit of all work is what the encoder takes for one image."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from stepclr.evaluation.baselines import SCRATCH_BATCH, START, STATISTICS_IMAGES
from stepclr.evaluation.finetune import FinetuneSettings
from stepclr.evaluation.linear import FOLDS
from stepclr.evaluation.methods import METHODS, PIXELS
from stepclr.evaluation.splits import LabelsPerClass, share_of
from stepclr.threads import Progress

DECODED, TRAINED = 0.3, 3.0  # images put through the encoder in the time of one that is decoded, or trained on
IMAGE_SECONDS = 0.008  # of a core, for an image, until it is measured
# Of linear evaluation: operations of a core per second; how often the loss of all folds is evaluated; and what the
# principal axes of n rows take, as a multiple of n^3.
SPEED, EVALUATIONS, AXES = 3e10, 200, 13
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
class Work:
    """Counts what is done and what there is, in these units, and calls `left` with the seconds that are left.

    features, pixels: numbers in h of the encoder and of the baseline pixels.
    """

    left: Callable[[float], object]
    classes: int
    features: int
    pixels: int
    scratch_steps: int
    done: float = 0.0
    under_way: float = 0.0
    """What is done of fits that are not finished."""
    total: float = 0.0
    image_seconds: float = IMAGE_SECONDS
    began: float = field(default_factory=time.monotonic)

    def add(self, images: float) -> None:
        """Note that `images` more units are done, and report the seconds that are left."""
        self.done += images
        done = self.done + self.under_way
        if done:
            self.left((time.monotonic() - self.began) / done * max(0.0, self.total - done))

    def part_of_split(self, name: str, labels: int, seconds: float) -> float:
        """How many units of `of_split` are done after `seconds`."""
        return min(self.of_split(name, labels), seconds / self.image_seconds)

    def images(self, each: float, measured: bool = False) -> Progress:
        """A `Progress` for images that are read or represented, each of which counts as `each` units.

        measured: the time of these images also tells how long a unit takes, so that fits are counted by it.
        """
        before, first, size, began = 0, 0, 0, 0.0

        def count(done: int, of: int) -> None:
            nonlocal before, first, size, began
            if of != size or done <= before:  # another set
                before, size = 0, of
            if not before:
                first, began = done, time.monotonic()
            elif measured:
                seconds = (time.monotonic() - began) * torch.get_num_threads()
                self.image_seconds = max(seconds / (done - first), 1e-6)
            self.add(each * (done - before))
            before = done

        return count

    def expect(self, sizes: Sizes, train: int, test: int, opened: int = 0) -> None:
        """Set what is left: the fits of these splits, and before them `opened` images to decode and to represent."""
        self.total = self.done + (DECODED + 1) * opened
        for name, splits in sizes.items():
            numbers = {number for number, _ in splits}
            if name == "pixels":
                self.total += PIXELS * (train + test)
            elif name == "random":
                drawn = sum(max(size for other, size in splits if other == number) for number in numbers)
                self.total += drawn + len(numbers) * (STATISTICS_IMAGES + test)
            elif name == START or name not in METHODS:  # another encoder
                self.total += train + test
            self.total += sum(self.of_split(name, labels) for _, labels in splits)

    def of_split(self, name: str, labels: int) -> float:
        """The units of a method's fit on this many labels, once the features are there."""
        if name == "knn":
            return 0.0
        if name == "scratch":
            return TRAINED * SCRATCH_BATCH * self.scratch_steps
        if name in ("sgd", "finetuned"):
            training = FinetuneSettings().training(labels)
            return TRAINED * training.steps * training.batch_size
        axes = min(labels, self.pixels if name == "pixels" else self.features)
        operations = AXES * axes**3 + EVALUATIONS * 4 * labels * axes * FOLDS * self.classes
        return operations / SPEED / self.image_seconds
