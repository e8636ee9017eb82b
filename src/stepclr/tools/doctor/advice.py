"""A recipe for these images, as a command to type, and why."""

import shlex
from dataclasses import replace
from typing import Any

from stepclr.config import PretrainConfig
from stepclr.recipes import recipe_config
from stepclr.tools.doctor.findings import Finding

STEPS = 1500  # of a run at least: what the sample's recipe takes; shorter ones have hardly learned
MOST = 1000  # epochs; no source goes further
MOSTLY = 0.5  # of the images with a label, from which supcon is worth a try


def advice(
    source: str,
    chosen: list[str],
    size: int,
    images: int,
    labelled: int,
    gpu: bool,
    largest: int | None,
    findings: list[Finding],
) -> dict[str, Any]:
    """`command` to type, `why` it is so line by line, and `with_labels`, the same with SupCon, where labels allow."""
    recipe, side, why = _recipe(size, gpu)
    config = recipe_config(recipe)
    batch, epochs = config.batch_size, config.epochs
    while batch > 32 and images < 4 * batch:
        batch //= 2
    if batch < config.batch_size:
        why.append(f"--batch-size {batch}: an epoch of {images:,} images should have a few steps")
    steps = max(1, images // batch)
    if steps * epochs < STEPS:
        epochs = min(MOST, -(-STEPS // steps))
        why.append(f"--epochs {epochs}: {STEPS:,} steps or so, as many as it takes to learn much from so few images")
    micro = _micro_batch(batch, largest)
    if micro:
        why.append(f"--micro-batch {micro}: more images at once than {largest:,} do not fit into the memory free now")
    options = _options(config, replace(config, batch_size=batch, epochs=epochs, micro_batch=micro, size=side))
    words = ["stepclr", "pretrain", source, *(["--classes", ",".join(chosen)] if chosen else [])]
    end = [*options, "--out", "runs/doctor"]
    with_labels = None
    if labelled >= MOSTLY * images and recipe:
        with_labels = shlex.join([*words, "--recipe", f"{recipe}-supcon", *end])
        torn = any(f["name"] == "conflicting-labels" for f in findings)
        why.append(
            f"{labelled:,} images have labels: if these are what you want to tell apart, SupCon learns from them too"
            + (", once the conflicting ones are settled" if torn else "")
        )
    command = shlex.join([*words, *(["--recipe", recipe] if recipe else []), *end])
    return {"command": command, "why": why, "with_labels": with_labels}


def _recipe(size: int, gpu: bool) -> tuple[str | None, int | None, list[str]]:
    """(recipe, view size if another than the images', why)."""
    if size <= 28:
        return "sample", None, [f"recipe sample: measured on images of 28 px; yours take views of {size}"]
    if size <= 48:
        return "cifar10", None, [f"recipe cifar10: measured on images of 32 px; yours take views of {size}"]
    if size <= 128:
        return "imagenette", None, [f"recipe imagenette: measured on images of 96 px; yours take views of {size}"]
    if gpu:
        return "imagenet", None, ["recipe imagenet: ResNet-50 on views of 224 px (published, not repeated here)"]
    longer = (size / 96) ** 2
    return (
        "imagenette",
        96,
        [f"recipe imagenette at --size 96: on a CPU, {size} px would take {longer:.0f} times as long"],
    )


def _micro_batch(batch: int, largest: int | None) -> int | None:
    """The largest power of two that fits, where the whole batch does not."""
    if largest is None or largest >= batch:
        return None
    return 1 << (max(2, largest).bit_length() - 1)


def _options(config: PretrainConfig, wanted: PretrainConfig) -> list[str]:
    words = []
    for name in ("size", "batch_size", "micro_batch", "epochs"):
        if getattr(wanted, name) != getattr(config, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(wanted, name))]
    return words
