"""Advice for these images: where to start, a recipe as a command to type, and the reasons for both.

What each start reached, and what others measured, is in docs/should-i-pretrain.md.
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from stepclr.data.reading import AS_DECLARED, RGB, Reading
from stepclr.evaluation.holdout import USUAL_SHARE
from stepclr.pretraining.resolve import ENCODER, epochs_of
from stepclr.recipes import recipe_config
from stepclr.tools.doctor.findings import Finding
from stepclr.tools.options import option_words, reading_words

MIN_STEPS = 1500  # of a run, as many as the sample's recipe takes: shorter runs learn little
MAX_EPOCHS = 1000  # no published recipe takes more
MIN_BATCH = 32
MOSTLY_LABELED = 0.5  # share of the images with a label from which supcon is worth trying
CHANGED = ("encoder", "size", "batch_size", "micro_batch", "epochs")  # settings of a recipe that the advice may change

FROM_SCRATCH, ADAPTED = "runs/doctor", "runs/adapted"  # the runs of the suggested commands
# Fewer images than this are the case that was measured here; from MANY on, more images add little (2105.05837).
FEW, MANY = 10_000, 500_000
FOR_CPUS = ("sample", "cifar10", "imagenette")  # recipes with a network so small that a CPU trains it in minutes
SMALLEST = 96  # pixels of a view: these networks reduce it 32-fold, and would leave less than 3 x 3 of a smaller one
# Trained without label smoothing and mixing of images, which make features worse for a linear layer (1805.08974).
ON_CPU, ON_GPU = ("resnet18", "tv_in1k"), ("resnet50", "tv_in1k")
COUNTS = (1, 10, 100)  # labels per class to compare with


@dataclass(frozen=True)
class Facts:
    """What the advice depends on."""

    sources: Sequence[str]
    size: int
    """Side of a view, in pixels."""
    images: int
    """How many can be read."""
    gpu: bool = False
    own_size: int | None = None
    """The side that `pretrain` takes for these images by itself, if that is another."""
    fitting: Callable[[str, str, int], int | None] = lambda *_: None
    """How many images fit into memory at once in an encoder of this name, stem and size, if that is known."""
    labeled: int = 0
    """How many have a label that a supervised loss can use."""
    smallest_class: int = 0
    """The labeled images of the smallest class; 0 if there are no labels to learn."""
    chosen: Sequence[str] = ()
    """The classes that were chosen, if any."""
    limit: int | None = None
    """How many images of the sources the run may have at most, if that was said."""
    tables: Sequence[str] = ()
    """The tables that the labels are from, which may say what is for test: then `test` is the source itself."""
    test: Sequence[str] = ()
    """The sources of labeled test images, if any."""
    reading: Reading = AS_DECLARED
    """How the images were read; the commands read them in the same way."""
    test_reading: Reading = AS_DECLARED
    """The same of the test images."""

    @property
    def label_options(self) -> list[str]:
        return ["--labels", *self.tables] if self.tables else []


@dataclass(frozen=True)
class Start:
    """Which way to try `first`, that answer in a sentence, commands that compare all three, with notes."""

    first: str
    answer: str
    compare: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Advice:
    """A command to type, the reasons for it, and the same command with SupCon where the labels allow it.

    `start`: whether to begin with weights that exist already.
    """

    command: str
    why: list[str]
    with_labels: str | None
    start: Start


def advice(facts: Facts, findings: Iterable[Finding]) -> Advice:
    """Settings for a run on these images, and where to start."""
    recipe, size, reason = _recipe(facts.size, facts.gpu)
    config, why = recipe_config(recipe), [reason]
    images = facts.images
    encoder = config.encoder
    if facts.gpu and recipe in FOR_CPUS:
        encoder = ENCODER
        why.append(f"--encoder {encoder}: the recipe's own network is small, for a CPU")

    # A batch that leaves several steps in an epoch, and epochs enough to learn from them.
    batch, epochs = config.batch_size, epochs_of(config)
    while batch > MIN_BATCH and images < 4 * batch:
        batch //= 2
    if batch < config.batch_size:
        why.append(f"--batch-size {batch}: an epoch of {images:,} images should have several steps")
    steps = max(1, images // batch)
    if steps * epochs < MIN_STEPS:
        epochs = min(MAX_EPOCHS, -(-MIN_STEPS // steps))
        why.append(f"--epochs {epochs}: about {MIN_STEPS:,} steps, since shorter runs learn little")
    fits = facts.fitting(encoder or ENCODER, config.stem, size)
    micro_batch = _micro_batch(batch, fits)
    if micro_batch:
        why.append(f"--micro-batch {micro_batch}: free memory holds about {fits:,} images at once")

    by_itself = config.size or facts.own_size or facts.size
    asked = None if size == by_itself else size
    wanted = replace(config, encoder=encoder, batch_size=batch, epochs=epochs, micro_batch=micro_batch, size=asked)
    changed = {name: getattr(wanted, name) for name in CHANGED if getattr(wanted, name) != getattr(config, name)}
    read = reading_words(facts.reading)
    classes = ",".join(facts.chosen) or None
    chosen = [*facts.label_options, *option_words({"classes": classes, "limit": facts.limit})]
    start = ["stepclr", "pretrain", *facts.sources, *chosen, "--recipe"]
    end = [*option_words(changed), *read, "--out", FROM_SCRATCH]
    with_labels = None
    if facts.labeled >= MOSTLY_LABELED * images:
        with_labels = shlex.join([*start, f"{recipe}-supcon", *end])
        reason = (
            f"{facts.labeled:,} images have labels: if you want to tell these classes apart, SupCon learns from them "
            "too"
        )
        if any(finding.name == "conflicting-labels" for finding in findings):
            reason += ", once the conflicting labels are resolved"
        why.append(reason)
    where = _where_to_start(facts, chosen, batch, max(size, SMALLEST))
    return Advice(shlex.join([*start, recipe, *end]), why, with_labels, where)


def _recipe(size: int, gpu: bool) -> tuple[str, int, str]:
    """(recipe, size of its views, why)."""
    for largest, recipe, made_for in ((28, "sample", 28), (64, "cifar10", 32), (128, "imagenette", 96)):
        if size <= largest:
            return recipe, size, f"recipe {recipe}: made for images of {made_for} px; your views have {size} px"
    if gpu:
        return "imagenet", 224, "recipe imagenet: ResNet-50 on views of 224 px (published, not reproduced here)"
    slower = (size / 96) ** 2
    return "imagenette", 96, f"recipe imagenette at --size 96: on a CPU, {size} px take {slower:.0f} times as long"


def _micro_batch(batch: int, fits: int | None) -> int | None:
    """The largest power of two that fits into memory, if the batch does not."""
    if fits is None or fits >= batch:
        return None
    return 1 << (max(2, fits).bit_length() - 1)


def _where_to_start(facts: Facts, chosen: Sequence[str], batch: int, size: int) -> Start:
    """Off-the-shelf weights, such weights adapted to the images, or from scratch: which first, and how to compare.

    chosen: options that choose images and labels. batch, size: of the run that adapts weights, and of its views.
    """
    network, tag = ON_GPU if facts.gpu else ON_CPU
    weights = f"timm:{network}.{tag}"
    micro_batch = _micro_batch(batch, facts.fitting(network, "imagenet", size))
    asked = None if size == (facts.own_size or facts.size) else size
    adapting = [*chosen, *option_words({"size": asked, "batch_size": batch, "micro_batch": micro_batch})]
    takes_them = facts.reading.bands in (1, RGB)  # the weights take RGB, which gray becomes
    first, answer = _first(f"{facts.images:,} images of {facts.size} px", facts.images, takes_them)
    notes = ["the weights learned from photos of things: how well they fit your images, only the comparison can say"]
    if facts.size < SMALLEST:
        notes.append(f"images of {facts.size} px are enlarged for the weights, which learned from larger ones")
    if not takes_them:
        bands = facts.reading.bands
        notes.append(f"the weights take RGB: with their first layer fitted to {bands} channels, they are the row start")
    read = reading_words(facts.reading)
    adapt = ["stepclr", "pretrain", *facts.sources, "--weights", weights, *adapting, *read, "--out", ADAPTED]
    score = ["stepclr", "evaluate", ADAPTED, "--train", *facts.sources, *facts.label_options]
    per_class = facts.smallest_class
    if not facts.smallest_class:
        score += ["--labels", "labels.csv"]
        # A run knows how its images are read, and takes several sources.
        labeler = [ADAPTED]
        if takes_them and len(facts.sources) == 1:
            labeler = [weights, *facts.sources, *reading_words(replace(facts.reading, channels=None))]
        label = ["stepclr", "label", *labeler, "--classes", "A,B", "-n", "60", "--out", "label.html"]
        notes.append(f"labels.csv has the columns path and label; to write it: {shlex.join(label)}")
    if not (facts.smallest_class and facts.test):
        score += ["--holdout", f"{USUAL_SHARE:g}"]
        per_class = facts.smallest_class // 2  # near duplicates stay on one side, which may move more than the share
        if facts.smallest_class == 1:
            notes.append("--holdout needs two images of each class: label more where there is one, or do without it")
    elif list(facts.test) != list(facts.sources):
        score += ["--test", *facts.test]
    counts = [*(str(count) for count in COUNTS if count <= per_class), "all"]
    baselines = f"pixels,{weights}" if takes_them else "pixels,start"
    score += ["--labels-per-class", ",".join(counts), "--baselines", baselines]
    score += reading_words(facts.reading.changed(facts.test_reading))
    notes.append(f"the run from scratch is compared too by --baselines {baselines},{FROM_SCRATCH}")
    return Start(first, answer, [shlex.join(adapt), shlex.join(score)], notes)


def _first(described: str, images: int, takes_them: bool) -> tuple[str, str]:
    """Which start to try first, and why, from what this number of images usually allows.

    takes_them: whether weights off the shelf take the images as they are.
    """
    if images >= MANY:
        return "from scratch", f"{described} are enough for an encoder of their own: train from scratch first"
    if images >= FEW:
        return "adapt", f"{described} are enough to adapt weights, and few to learn all from scratch: adapt first"
    if not takes_them:
        return "adapt", f"{described} are few to learn from, and have channels that weights do not know: adapt first"
    return "off the shelf", f"{described} are few to learn from: try weights off the shelf first, then adapt them"
