"""Where to start: with off-the-shelf weights, with such weights adapted to the images, or from scratch.

What each of them reached, and what others measured, is in docs/should-i-pretrain.md.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stepclr.data.reading import RGB, Reading
from stepclr.evaluation.holdout import USUAL_SHARE
from stepclr.tools.options import reading_words

FROM_SCRATCH, ADAPTED = "runs/doctor", "runs/adapted"  # the runs of the suggested commands
# Fewer images than this are the case that was measured here; from MANY on, more images add little (2105.05837).
FEW, MANY = 10_000, 500_000
SMALLEST = 96  # pixels of a view: these networks reduce it 32-fold, and would leave less than 3 x 3 of a smaller one
# Trained without label smoothing and mixing of images, which make features worse for a linear layer (1805.08974).
ON_CPU, ON_GPU = "timm:resnet18.tv_in1k", "timm:resnet50.tv_in1k"
COUNTS = (1, 10, 100)  # labels per class to compare with


@dataclass(frozen=True)
class Start:
    """Which way to try `first`, that answer in a sentence, commands that compare all three, with notes."""

    first: str
    answer: str
    compare: list[str]
    notes: list[str]


def where_to_start(
    sources: Sequence[str],
    images: int,
    size: int,
    gpu: bool,
    adapting: Sequence[str],
    reading: Reading,
    labels: Sequence[str],
    test: str | None,
    smallest_class: int,
) -> Start:
    """Which start to try first for so many images of `size` px, and the commands that compare the starts.

    adapting: options of the run that adapts weights. reading: how the images are read. labels: the option with the
    tables that have the labels, if any, which may say what is for test: then `test` is the source itself. test: labeled
    test images, if any. smallest_class: how many labeled images it has, 0 if there are no labels yet.
    """
    weights = ON_GPU if gpu else ON_CPU
    takes_them = reading.bands in (1, RGB)  # the weights take RGB, which gray becomes
    first, answer = _first(f"{images:,} images of {size} px", images, takes_them)
    notes = ["the weights learned from photos of things: how well they fit your images, only the comparison can say"]
    if size < SMALLEST:
        notes.append(f"images of {size} px are enlarged for the weights, which learned from larger ones")
    if not takes_them:
        notes.append(
            f"the weights take RGB: with their first layer fitted to {reading.bands} channels, they are the row start"
        )
    read = reading_words(reading)
    adapt = ["stepclr", "pretrain", *sources, "--weights", weights, *adapting, *read, "--out", ADAPTED]
    score = ["stepclr", "evaluate", ADAPTED, "--train", *sources, *labels]
    per_class = smallest_class
    if not smallest_class:
        score += ["--labels", "labels.csv"]
        # A run knows how its images are read, and takes several sources.
        labeler = [ADAPTED]
        if takes_them and len(sources) == 1:
            labeler = [weights, *sources, *reading_words(replace(reading, channels=None))]
        label = ["stepclr", "label", *labeler, "--classes", "A,B", "-n", "60", "--out", "label.html"]
        notes.append(f"labels.csv has the columns path and label; to write it: {shlex.join(label)}")
    if not (smallest_class and test):
        score += ["--holdout", f"{USUAL_SHARE:g}"]
        per_class = smallest_class // 2  # near duplicates stay on one side, which may move more than the share
    elif test != ", ".join(sources):
        score += ["--test", test]
    counts = [*(str(count) for count in COUNTS if count <= per_class), "all"]
    baselines = f"pixels,{weights}" if takes_them else "pixels,start"
    score += ["--labels-per-class", ",".join(counts), "--baselines", baselines, *read]
    notes.append(f"the run from scratch is compared too by --baselines {baselines},{FROM_SCRATCH}")
    return Start(first, answer, [shlex.join(adapt), shlex.join(score)], notes)


def adapted_size(size: int, view_size: int | None) -> list[str]:
    """The option for the views of the run that adapts weights, for images of `size` px; `view_size` is the recipe's."""
    if size < SMALLEST:
        return ["--size", str(SMALLEST)]
    return ["--size", str(view_size)] if view_size else []


def _first(described: str, images: int, takes_them: bool) -> tuple[str, str]:
    """Which start to try first, and why, from what so many images usually allow.

    takes_them: whether weights off the shelf take the images as they are.
    """
    if images >= MANY:
        return "from scratch", f"{described} are enough for an encoder of their own: train from scratch first"
    if images >= FEW:
        return "adapt", f"{described} are enough to adapt weights, and few to learn all from scratch: adapt first"
    if not takes_them:
        return "adapt", f"{described} are few to learn from, and have channels that weights do not know: adapt first"
    return "off the shelf", f"{described} are few to learn from: try weights off the shelf first, then adapt them"
