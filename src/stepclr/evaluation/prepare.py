"""Prepares labeled images for every method: the classes, the readable images and their h, the label splits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.data.labels import check_classes, class_counts, of_these_classes, present_classes, split_folders
from stepclr.data.reading import as_words
from stepclr.data.sources import Source, absolute_source, open_images, sources_of
from stepclr.device import software
from stepclr.distributed import ALONE, World
from stepclr.errors import StepclrError, choose, nearest
from stepclr.evaluation.holdout import describe_holdout, held_out
from stepclr.evaluation.overlap import find_overlap, learned_labels, no_overlap, seen_unlabeled, version_groups
from stepclr.evaluation.splits import LabelsPerClass, Split, label_splits
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.pretraining.classifier import logits
from stepclr.pretraining.run import Run
from stepclr.threads import Announce, Progress, silent
from stepclr.views.policies import FLIP, read_policy

MIN_AREA = 0.2  # smallest crop of training where no run has another


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Readable labeled images to learn from and to score on (none where there is no test), with the encoder's h.

    Labels are positions in `classes`; `clean` says which test images are not in train too. `opened` are train and test
    as they were opened, before they were read and reduced for the encoder. `protocol` is the part of the protocol that
    `evaluation.json` and `finetune.json` share.
    """

    classes: list[str]
    train: ImageSet
    test: ImageSet
    h: Float32[np.ndarray, "n f"]
    h_test: Float32[np.ndarray, "m f"]
    clean: Bool[np.ndarray, " m"]
    opened: tuple[ImageSet, ImageSet]
    splits: list[Split]
    protocol: dict[str, Any]

    def known_to(self, run: str | os.PathLike[str], others: Sequence[str], encoder: Encoder) -> dict[str, Any]:
        """What the encoder of a run, and `others` with a row of their own, know already of the images to score on."""

        def decoded(images: ImageSet) -> ImageSet:
            return encoder.ranged(images).decoded(source_side(encoder.size))

        opened = self.opened[1]
        return {
            "learned_labels": learned_labels(run, others, self.protocol, (opened, self.test), decoded),
            "seen_unlabeled": seen_unlabeled(run, others, self.protocol, opened),
        }


def prepare(
    encoder: Encoder,
    train: Source,
    test: Source | None,
    labels_per_class: Sequence[LabelsPerClass],
    draws: int,
    seed: int,
    holdout: float | None = None,
    world: World = ALONE,
    announce: Announce = silent,
    decoding: Progress = silent,
    representing: Progress = silent,
) -> PreparedImages:
    """Open, choose the classes, decode and represent the images, and draw the label splits.

    holdout: the share of train that becomes test, where there is no test. announce: called with how many images are
    done, in words; decoding, representing: with (images done, images in all) of train, and then of test.
    Raises StepclrError for a class that test has and train lacks, a class with too few labels, a test set that is all
    in train, and a holdout that leaves a class without an image on one side.
    """
    train, test = open_images(train), None if test is None else open_images(test)
    opened = (train, train if test is None else test)
    train, test = encoder.ranged(train), None if test is None else encoder.ranged(test)
    classes = shared_classes(encoder, train, test)
    # Before the long part, see whether there are enough labels.
    labels = train.keep(classes).labels
    if holdout is not None:
        labels = labels[~held_out(labels, classes, holdout, seed)]
    label_splits(labels, classes, labels_per_class, 1, seed)

    def announced(count: Progress) -> Progress:
        def progress(done: int, total: int) -> None:
            count(done, total)
            announce(f"the images and their representations, {done:,} of {total:,}")

        return progress

    decoding, representing = announced(decoding), announced(representing)
    train, h, train_counts = _readable(encoder, train, classes, world, decoding, representing)
    lost = [name for name, count in class_counts(train).items() if not count]
    if lost:
        raise StepclrError(f"{train.source}: no image of class {lost[0]!r} can be read")

    # Test images are a set of their own, a part of train that is held out, or there are none.
    test_counts, shared, clean, drawn = None, None, np.ones(0, bool), None
    if test is not None:
        test, h_test, test_counts = _readable(encoder, test, classes, world, decoding, representing)
        shared, clean = find_overlap(train, test, world)
    elif holdout is not None:
        versions, near = version_groups(train, world)
        mask = held_out(train.labels, classes, holdout, seed, versions)
        test, h_test = train.take(mask), h[mask]
        train, h = train.take(~mask), h[~mask]
        # The images that were left out belong to neither side: they are counted once, with train.
        left_out = {key: 0 for key in train_counts if key.startswith("left_out")}
        test_counts = train_counts | left_out | {"images": len(test)}
        train_counts["images"] = len(train)
        shared, clean = no_overlap(len(test), near)
        drawn = describe_holdout(holdout, seed, train, test, versions)
    else:
        test, h_test = train.take([]), h[:0]

    in_test = class_counts(test)
    protocol = {
        "classes": classes,
        "classes_not_in_test": [] if test_counts is None else [name for name in classes if not in_test[name]],
        "train": train_counts,
        "test": test_counts,
        "images_per_class": {"train": class_counts(train), "test": in_test},
        "holdout": drawn,
        "test_images_in_train": shared,
        "test_labels": "read once, after the last prediction" + (", but for the holdout" if drawn else ""),
        "labels_per_class": list(labels_per_class),
        "draws": draws,
        "seed": seed,
        "std": "sample standard deviation over the draws (ddof 1); null where there is one value",
        "versions": software(),
        "threads": torch.get_num_threads(),
    }
    splits = label_splits(train.labels, classes, labels_per_class, draws, seed)
    return PreparedImages(classes, train, test, h, h_test, clean, opened, splits, protocol)


def shared_classes(encoder: Encoder, train: ImageSet, test: ImageSet | None = None) -> list[str]:
    """The classes to tell apart: those that were chosen for pretraining, if any, otherwise those of train.

    Raises StepclrError where train or test has no labels, where train lacks a class that was chosen, or has fewer than
    two, where the classes are the names of splits, and, if none were chosen, where test has a class that train lacks.
    """
    in_train = _present(train)
    classes = encoder.classes or in_train
    for name in classes:
        choose(f"class of {train.source}", name, in_train)
    check_classes(train, classes)
    if test is None:
        return list(classes)
    in_test = _present(test)
    if why := split_folders(test):
        raise StepclrError(why)
    extra = [name for name in in_test if name not in in_train]
    if extra and not encoder.classes:
        raise StepclrError(
            f"{test.source} has the class {extra[0]!r}, of which {train.source} has no image."
            f"{nearest(extra[0], in_train)}"
        )
    of_these_classes(test, classes)  # raises where there is none
    return list(classes)


def _present(images: ImageSet) -> list[str]:
    """The classes that have images; StepclrError where none has."""
    present = present_classes(images)
    if not present:
        raise StepclrError(f"{images.source} has no labels, which train and test need: pass labels=labels.csv")
    return present


def _readable(
    encoder: Encoder, images: ImageSet, classes: list[str], world: World, decoding: Progress, representing: Progress
) -> tuple[ImageSet, Float32[np.ndarray, "n f"], dict[str, Any]]:
    """The readable images of these classes (labels in their order), their h, and how many were left out."""
    labeled = images.keep(images.classes)
    of_classes = of_these_classes(labeled, classes)
    with world.in_turn():
        decoded = of_classes.decoded(source_side(encoder.size), progress=decoding)
    h, kept = represent(encoder, decoded, world=world, progress=representing)
    counts = {
        "source": as_words(sources_of(images)),
        "images": len(kept),
        "left_out_without_label": len(images) - len(labeled),
        "left_out_of_other_classes": len(labeled) - len(of_classes),
        "left_out_unreadable": len(of_classes) - len(kept),
    }
    if images.parts:
        counts["sources"] = sources_of(images)
    if images.labeling:
        counts["labels"] = [absolute_source(name) for name in images.labeling.labeled]
        counts["split"] = images.labeling.split
    reading = images.store.reading  # what no encoder knows of it, so that the images can be opened again
    options = {"max_pixels": reading.max_pixels, "damaged_shards": "skip" if reading.skips else None}
    if any(options.values()):
        counts["reading"] = {name: value for name, value in options.items() if value}
    return decoded.take(kept), h.numpy(), counts


def represented_by(
    encoder: Encoder, images: PreparedImages, world: World = ALONE, progress: Progress | None = None
) -> PreparedImages:
    """The same images with h of another encoder that preprocesses images in the same way."""
    sets = images.train, images.test
    h, h_test = (_of_all(some, *represent(encoder, some, world=world, progress=progress)).numpy() for some in sets)
    return replace(images, h=h, h_test=h_test)


def unreduced(images: ImageSet, opened: ImageSet) -> ImageSet:
    """The same images at the size they were opened with, and with the labels of the opened set."""
    index_of = {name: index for index, name in enumerate(opened.names)}
    return opened.take([index_of[name] for name in images.names])


def training_defaults(run: Run) -> tuple[float, bool, float]:
    """The smallest crop, whether to train in bfloat16, and how often to mirror: as in pretraining.

    MIN_AREA, False and FLIP for an encoder file.
    """
    if not run.exists():
        return MIN_AREA, False, FLIP
    config = run.config
    return config.min_area, config.precision == "bf16", read_policy(config.policy).flip


def features(encoder: Encoder, images: ImageSet, progress: Progress | None = None) -> Float32[np.ndarray, "n f"]:
    """h of every image, float32. Raises StepclrError if one can no longer be read."""
    return _of_all(images, *represent(encoder, images, progress=progress)).numpy()


def all_logits(classifier: Classifier, images: ImageSet, progress: Progress | None = None) -> Float[Tensor, "n c"]:
    """Logits of every image, float32. Raises StepclrError if one can no longer be read."""
    return _of_all(images, *logits(classifier, images, progress))


def _of_all(images: ImageSet, rows: Tensor, kept: Int[np.ndarray, " n"]) -> Tensor:
    if len(kept) < len(images):
        raise StepclrError(
            f"{images.source}: {len(images) - len(kept)} images can no longer be read; run the command again"
        )
    return rows
