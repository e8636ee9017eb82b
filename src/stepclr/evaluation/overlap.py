"""Test images that are in train too, images that a holdout keeps together, and labels that an encoder knows already."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from stepclr.data.copies import copies, fingerprints
from stepclr.data.details import groups
from stepclr.data.images import ImageSet
from stepclr.distributed import World
from stepclr.errors import StepclrError
from stepclr.loss.objectives import OBJECTIVES
from stepclr.pretraining.run import Run

# Versions are looked for among up to this many pairs of images. Identical images are found in sets of any size.
MAX_PAIRS = 2_000_000_000
EXAMPLES = 5
Overlap = dict[str, object]


def find_overlap(train: ImageSet, test: ImageSet, world: World) -> tuple[Overlap, Bool[np.ndarray, " m"]]:
    """The overlap of two decoded sets, as the protocol has it, and which test images are clean.

    A test image is clean if train contains neither the same image nor another version of it (re-compressed, resized,
    slightly cropped or brightened), as `stepclr doctor` finds them. The overlap counts the `identical` test images, the
    `near_identical` ones (None where there are too many pairs to look for versions) and the `clean` ones, and has some
    `examples`. Raises StepclrError where no test image is clean.
    """
    near = len(train) * len(test) <= MAX_PAIRS
    pairs = copies(fingerprints(test), fingerprints(train), near) if world.first else None
    exact, versions = world.objects(pairs)[0]
    clean = np.ones(len(test), bool)
    clean[[i for i, _ in [*exact, *versions]]] = False
    examples = [f"{test.names[i]} = {train.names[j]}" for i, j in [*exact, *versions][:EXAMPLES]]
    if not clean.any():
        raise StepclrError(
            f"all {len(test)} images of {test.source} are in {train.source} too, such as {examples[0]}: scores on them "
            "mean nothing; name other test images"
        )
    return _overlap(len(exact), len(versions) if near else None, int(clean.sum()), examples), clean


def no_overlap(n: int, near: bool) -> tuple[Overlap, Bool[np.ndarray, " n"]]:
    """`find_overlap` of n test images none of which is in train. near: whether versions were looked for."""
    return _overlap(0, 0 if near else None, n, []), np.ones(n, bool)


def _overlap(identical: int, near_identical: int | None, clean: int, examples: list[str]) -> Overlap:
    return {"identical": identical, "near_identical": near_identical, "clean": clean, "examples": examples}


def version_groups(images: ImageSet, world: World) -> tuple[list[list[int]], bool]:
    """The groups of images of a decoded set that are identical or versions of each other, or connected by others.

    Also whether versions were looked for, which may take too many pairs.
    """
    near = len(images) ** 2 // 2 <= MAX_PAIRS
    pairs = copies(fingerprints(images), near=near) if world.first else None
    exact, versions = world.objects(pairs)[0]
    return groups([*exact, *versions]), near


def learned_labels(runs: Iterable[str | os.PathLike[str]], protocol: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the runs whose loss learned from labels, and of which source: their encoders know these labels.

    scored: whether the images that the protocol scores on may be among that source. They are not where training left
    out what a table's column `split` holds out.
    """
    learned = []
    for run in map(Run, map(Path, runs)):
        if run.exists() and OBJECTIVES[run.config.loss].needs_labels:
            config, train, part = run.config, protocol["train"], protocol["test"] or protocol["train"]
            kept_apart = config.split and train.get("split") and not protocol["holdout"]
            scored = not kept_apart and _share_images(config.sources, part.get("sources") or [part["source"]])
            source = {"source": config.source_text, "labels": config.labeled}
            learned.append({"run": os.fspath(run.folder), "loss": config.loss, **source, "scored": scored})
    return learned


def _share_images(sources: list[str], others: list[str]) -> bool:
    """Whether some source is among the others, or a folder in one of them, or around it."""
    pairs = [(Path(a), Path(b)) for a in sources for b in others]
    return any(a.is_relative_to(b) or b.is_relative_to(a) for a, b in pairs)
