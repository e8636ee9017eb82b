"""A recipe for these images: a command to type, and the reasons for it."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from stepclr.data.reading import AS_DECLARED, Reading
from stepclr.pretraining.resolve import epochs_of
from stepclr.recipes import recipe_config
from stepclr.tools.doctor.findings import Finding
from stepclr.tools.doctor.start import FROM_SCRATCH, Start, adapted_size, where_to_start
from stepclr.tools.options import option_words, reading_words

MIN_STEPS = 1500  # of a run, as many as the sample's recipe takes: shorter runs learn little
MAX_EPOCHS = 1000  # no published recipe takes more
MIN_BATCH = 32
MOSTLY_LABELED = 0.5  # share of the images with a label from which supcon is worth trying
CHANGED = ("size", "batch_size", "micro_batch", "epochs")  # settings of a recipe that the advice may change


@dataclass(frozen=True)
class Advice:
    """A command to type, the reasons for it, and the same command with SupCon where the labels allow it.

    `start`: whether to begin with weights that exist already.
    """

    command: str
    why: list[str]
    with_labels: str | None
    start: Start


def advice(
    sources: Sequence[str],
    chosen: list[str],
    size: int,
    images: int,
    labeled: int,
    gpu: bool,
    largest: int | None,
    findings: Iterable[Finding],
    reading: Reading = AS_DECLARED,
    tables: Sequence[str] = (),
    test: str | None = None,
    smallest_class: int = 0,
) -> Advice:
    """Settings for a set of `images` readable images, with views of `size` px.

    chosen: the classes that were chosen, if any. largest: how many images fit into memory at once, if known.
    reading: how the images were read; the command reads them in the same way. tables: that the labels are from.
    test: labeled test images, if any. smallest_class: its labeled images, 0 if there are no labels to learn.
    """
    recipe, view_size, reason = _recipe(size, gpu)
    config, why = recipe_config(recipe), [reason]
    batch, epochs = config.batch_size, epochs_of(config)
    while batch > MIN_BATCH and images < 4 * batch:
        batch //= 2
    if batch < config.batch_size:
        why.append(f"--batch-size {batch}: an epoch of {images:,} images should have several steps")
    steps = max(1, images // batch)
    if steps * epochs < MIN_STEPS:
        epochs = min(MAX_EPOCHS, -(-MIN_STEPS // steps))
        why.append(f"--epochs {epochs}: about {MIN_STEPS:,} steps, which learning takes even with few images")
    micro_batch = None
    if largest is not None and largest < batch:
        micro_batch = 1 << (max(2, largest).bit_length() - 1)  # the largest power of two that fits
        why.append(f"--micro-batch {micro_batch}: free memory holds about {largest:,} images at once")
    wanted = replace(config, batch_size=batch, epochs=epochs, micro_batch=micro_batch, size=view_size)
    changed = {name: getattr(wanted, name) for name in CHANGED if getattr(wanted, name) != getattr(config, name)}
    options, read = option_words(changed), reading_words(reading)

    classes = ["--classes", ",".join(chosen)] if chosen else []
    labels = ["--labels", *tables] if tables else []
    start = ["stepclr", "pretrain", *sources, *labels, *classes, "--recipe"]
    end = [*options, *read, "--out", FROM_SCRATCH]
    with_labels = None
    if labeled >= MOSTLY_LABELED * images:
        with_labels = shlex.join([*start, f"{recipe}-supcon", *end])
        reason = f"{labeled:,} images have labels: if you want to tell these classes apart, SupCon learns from them too"
        if any(finding.name == "conflicting-labels" for finding in findings):
            reason += ", once the conflicting labels are resolved"
        why.append(reason)
    adapting = [*labels, *classes, *adapted_size(size, view_size), "--batch-size", str(batch)]
    if micro_batch:
        adapting += ["--micro-batch", str(micro_batch)]
    where = where_to_start(sources, images, size, gpu, adapting, reading, labels, test, smallest_class)
    return Advice(shlex.join([*start, recipe, *end]), why, with_labels, where)


def _recipe(size: int, gpu: bool) -> tuple[str, int | None, str]:
    """(recipe, view size if it differs from the images', why)."""
    for largest, recipe, measured in ((28, "sample", 28), (48, "cifar10", 32), (128, "imagenette", 96)):
        if size <= largest:
            return recipe, None, f"recipe {recipe}: measured on images of {measured} px; your views have {size} px"
    if gpu:
        return "imagenet", None, "recipe imagenet: ResNet-50 on views of 224 px (published, not reproduced here)"
    slower = (size / 96) ** 2
    return (
        "imagenette",
        96,
        f"recipe imagenette at --size 96: on a CPU, {size} px take {slower:.0f} times as long",
    )
