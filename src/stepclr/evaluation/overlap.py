"""Test images that are in train too, those that a holdout keeps together, and what an encoder knows of them already."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from stepclr.config import RunConfig
from stepclr.data.copies import copies, fingerprints
from stepclr.data.details import groups
from stepclr.data.images import ImageSet
from stepclr.data.sources import sources_of
from stepclr.distributed import World
from stepclr.errors import StepclrError
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.timm_weights import timm_name
from stepclr.pretraining.run import Run

# Versions are looked for among up to this many pairs of images. Identical images are found in sets of any size.
MAX_PAIRS = 2_000_000_000
MAX_COMPARED = 100_000  # images of a run that are decoded once more, to look for those to score on
EXAMPLES = 5
Decoded = Callable[[ImageSet], ImageSet]
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


def learned_labels(
    encoder: str | os.PathLike[str],
    others: Iterable[str],
    protocol: dict[str, Any],
    tests: tuple[ImageSet, ImageSet],
    decoded: Decoded,
) -> list[dict[str, Any]]:
    """The runs behind an encoder and the `others`, rows of their own, that learned from labels, and of which source.

    tests: the images to score on, or those that they are held out of, as they were opened; and decoded by `decoded`.
    scored: whether they may be among that source. They are not where training left out what the same table's column
    `split` holds out. None for a student: its source is the teacher, and which labels that one learned from is not
    known here.
    """
    learned: list[dict[str, Any]] = []
    opened, readable = tests
    for row, run in _rows_and_runs(encoder, others):
        config, objective = run.config, OBJECTIVES[run.config.loss]
        of_run: dict[str, Any] = {"row": row, "run": os.fspath(run.folder), "loss": config.loss}
        if objective.needs_teacher:
            learned.append(of_run | {"source": config.teacher, "labels": 0, "scored": None})
        elif objective.needs_labels:
            left_out = _left_out(config, protocol)
            scored = not left_out and (_may_be_among(opened, config) or _are_copies(readable, run, decoded))
            learned.append(of_run | {"source": config.source_text, "labels": config.labeled, "scored": scored})
    return learned


def seen_unlabeled(
    encoder: str | os.PathLike[str], others: Iterable[str], protocol: dict[str, Any], test: ImageSet
) -> list[dict[str, Any]]:
    """The runs behind an encoder and the `others` that may have been pretrained, without labels, on images to score on.

    test: as in `learned_labels`, as they were opened.
    """
    return [
        {"row": row, "run": os.fspath(run.folder), "source": run.config.source_text}
        for row, run in _rows_and_runs(encoder, others)
        if not OBJECTIVES[run.config.loss].needs_labels
        if not _left_out(run.config, protocol) and _may_be_among(test, run.config)
    ]


def _rows_and_runs(encoder: str | os.PathLike[str], others: Iterable[str]) -> Iterator[tuple[str | None, Run]]:
    """The runs behind an encoder (row None), and those behind each of the others, by its row."""
    for row, place in [(None, encoder), *((other, other) for other in others)]:
        for run in _runs_behind(place):
            yield row, run


def _left_out(config: RunConfig, protocol: dict[str, Any]) -> bool:
    """Whether a run left out the images to score on: those that the column `split` of the same table holds out."""
    train, test = protocol["train"], protocol["test"] or {}
    same_table = all(part.get("split") and part.get("labels") == config.labels for part in (train, test))
    return bool(config.split and same_table) and test["split"] == "test" and not protocol["holdout"]


def _runs_behind(encoder: str | os.PathLike[str]) -> Iterator[Run]:
    """The run that made an encoder, those whose weights it began with, and those of its teachers."""
    places, seen = [os.fspath(encoder)], set[Path]()
    while places:
        place = Path(places.pop(0))
        run = Run(place if place.is_dir() else place.parent)  # an encoder may be given as the file in its run
        if timm_name(place) is None and run.exists() and run.folder.resolve() not in seen:
            seen.add(run.folder.resolve())
            yield run
            places += [other for other in (run.config.weights, run.config.teacher) if other]


def _may_be_among(images: ImageSet, config: RunConfig) -> bool:
    """Whether images may be among those of a run, by their sources; those of arrays, by their number alone."""
    given = sources_of(images)
    sources = [given] if isinstance(given, str) else given
    same = sources == config.sources and images.names_checksum() == config.names_checksum
    return same or any(_meet(a, b) for a, b in product(sources, config.sources))


def _are_copies(images: ImageSet, run: Run, decoded: Decoded) -> bool:
    """Whether an image is among those of a run under another path. Of many images, or where they are gone, False."""
    if run.config.images > MAX_COMPARED:
        return False
    try:
        of_run = decoded(run.images())
    except StepclrError:
        return False
    return any(copies(fingerprints(images), fingerprints(of_run), near=False))


def _meet(source: str, other: str) -> bool:
    """Whether two sources share images: a folder in another, or a part of NAME:SPLIT+SPLIT. Arrays have no place."""
    (name, _, splits), (of_other, _, splits_of_other) = source.partition(":"), other.partition(":")
    if name == of_other and splits:
        return not {*splits.split("+")}.isdisjoint(splits_of_other.split("+"))
    a, b = Path(source), Path(other)
    return a.is_absolute() and (a.is_relative_to(b) or b.is_relative_to(a))
