"""Labels and splits that tables give to the images of a set, in the place of those that its source has."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stepclr.data.folders import FolderStore
from stepclr.data.images import ImageSet, Labeling
from stepclr.data.joined import Joined
from stepclr.data.label_csv import Labels, Section, check_found, missing_words, read_labels
from stepclr.errors import StepclrError, choose

SPLITS = ("train", "test")


def label_images(images: ImageSet, tables: object, missing: str = "refuse") -> ImageSet:
    """The images with the labels of tables (as `read_labels` takes them) instead of their own.

    Where the set has several sources, those of which the tables name no image keep their own labels.
    missing: "refuse" raises StepclrError for paths that are not in the source; "list" enters them in `labeling`.
    """
    labels = _read([images], tables)
    if missing == "refuse":
        check_found(labels, images.source)
    return _labeled(images, labels, 0)


def label_both(train: ImageSet, test: ImageSet, tables: object, missing: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """`label_images` of two sets by the same tables: each path is in one of them; a set that is not named stays."""
    labels = _read([train, test], tables)
    if missing == "refuse":
        check_found(labels, f"{train.source} or {test.source}")
    sets = []
    for images, start in ((train, 0), (test, len(train))):
        named = any(start <= i < start + len(images) for i in labels.rows)
        sets.append(_labeled(images, labels, start) if named else images)
    return sets[0], sets[1]


def of_split(images: ImageSet, split: str) -> ImageSet:
    """The images of one split of the tables: "test", or "train", which is all others, also those without a row."""
    labeling = images.labeling
    choose("split", split, SPLITS)
    if labeling is None or not labeling.has_splits:
        raise StepclrError(f"split={split!r} needs labels that have a column split")
    held_out = np.array([labeling.rows.get(name, ("", ""))[1] == "test" for name in images.names], bool)
    chosen = held_out if split == "test" else ~held_out
    if not chosen.any():
        raise StepclrError(f"{', '.join(labeling.labeled)}: no image of {images.source} is in the split {split}")
    return replace(images.take(chosen), labeling=replace(labeling, split=split))


def to_learn_from(images: ImageSet) -> ImageSet:
    """The images without those that their tables hold out: all, where a split was chosen or there is none."""
    return of_split(images, "train") if _undecided(images) else images


def train_and_test(train: ImageSet, test: ImageSet | None, holds_out: bool = True) -> tuple[ImageSet, ImageSet | None]:
    """The images to learn from and to score on; without `test`, those that tables hold out, if `holds_out` is true."""
    if test is not None:
        test = of_split(test, "test") if _undecided(test) else test
    elif holds_out and _undecided(train):
        test = of_split(train, "test")
    return to_learn_from(train), test


def _undecided(images: ImageSet) -> bool:
    """Whether the images are of several splits of their tables, or could be."""
    labeling = images.labeling
    return labeling is not None and labeling.split is None and any(split for _, split in labeling.rows.values())


def _read(sets: Sequence[ImageSet], tables: object) -> Labels:
    sections, start = [], 0
    for images in sets:
        sections += _sections(images, start)
        start += len(images)
    known = [path for images in sets for path in (*images.ledger.ignored, *images.ledger.unreadable)]
    return read_labels(tables, sections, " or ".join(images.source for images in sets), known)


def _sections(images: ImageSet, start: int) -> list[Section]:
    """The images by their names and, where there are several sources, by their names in these."""
    store = images.store
    if not isinstance(store, Joined):
        return [Section(images.names, start, str(store.root) if isinstance(store, FolderStore) else None)]
    sections = [Section(images.names, start)]
    part = store.part_of(images.rows)
    for k, (each, tag) in enumerate(zip(store.stores, store.tags, strict=True)):
        indices = np.flatnonzero(part == k)
        if len(indices) and indices[-1] - indices[0] == len(indices) - 1:
            names = [images.names[i].removeprefix(tag) for i in indices.tolist()]
            root = str(each.root) if isinstance(each, FolderStore) else None
            sections.append(Section(names, start + int(indices[0]), root))
    return sections


def _labeled(images: ImageSet, labels: Labels, start: int) -> ImageSet:
    """The images with the labels of their rows, whose indices begin at `start`."""
    rows = {i - start: row for i, row in labels.rows.items() if start <= i < start + len(images)}
    names: list[str | None] = [None] * len(images)
    if isinstance(images.store, Joined):
        part = images.store.part_of(images.rows)
        named = set(part[list(rows)].tolist())
        names = [None if part[i] in named else images.class_name(i) for i in range(len(images))]
    for i, row in rows.items():
        names[i] = row.label or None
    classes = sorted({name for name in names if name is not None})
    number = {name: label for label, name in enumerate(classes)} | {None: -1}
    labeling = Labeling(
        labeled=labels.labeled,
        rows={images.names[i]: (row.label, row.split) for i, row in sorted(rows.items())},
        has_splits=labels.has_splits,
        replaced=bool((images.labels >= 0).any()),
        missing=missing_words(labels, images.source) if labels.missing else "",
    )
    new = np.array([number[name] for name in names], np.int64)
    return replace(images, labels=new, classes=classes, chosen=None, labeling=labeling)
