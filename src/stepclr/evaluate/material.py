"""Train and test as every method meets them, and the frozen encoder's word that it stayed so."""

import hashlib
from typing import Any

import numpy as np
from jaxtyping import Float32
from torch import nn

from stepclr.data import ImageSet
from stepclr.errors import StepclrError, choose
from stepclr.model import Encoder, represent


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's weights and buffers: names, types, shapes, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def shared_classes(encoder: Encoder, train: ImageSet, test: ImageSet) -> list[str]:
    """The classes to tell apart: those that were chosen for pretraining, if any, else those of train.

    Raises StepclrError where train or test lacks one of them, has no labels, or, if none were chosen, test has another.
    """
    for images in (train, test):
        if not images.classes:
            raise StepclrError(f"{images.source} has no labels; to score an encoder, train and test both need them")
    if encoder.classes:
        classes = encoder.classes
        pairs = [(name, images) for images in (train, test) for name in classes]
    else:
        classes = train.classes
        pairs = [(name, test) for name in train.classes] + [(name, train) for name in test.classes]
    for name, images in pairs:
        choose(f"class of {images.source}", name, images.classes)
    if len(classes) < 2:
        raise StepclrError(f"{train.source} has one class, {classes[0]!r}; to score an encoder takes two or more")
    return list(classes)


def prepare(encoder: Encoder, images: ImageSet, classes: list[str]) -> tuple[ImageSet, np.ndarray, dict[str, Any]]:
    """The readable labelled pictures of these classes (labels in their order), their h, and how many were left out."""
    labelled = images.keep(images.classes)
    among = labelled.keep(classes)
    readable = among.decoded(2 * encoder.size)
    h, kept = represent(encoder, readable)
    facts = {
        "source": images.source,
        "pictures": len(kept),
        "left_out_without_label": len(images) - len(labelled),
        "left_out_of_other_classes": len(labelled) - len(among),
        "left_out_unreadable": len(among) - len(kept),
    }
    return readable.take(kept), h.numpy(), facts


def features(encoder: Encoder, images: ImageSet) -> Float32[np.ndarray, "n f"]:
    """h of every picture, float32; StepclrError if one that could be read before now cannot."""
    h, kept = represent(encoder, images)
    if len(kept) < len(images):
        raise StepclrError(f"{images.source}: {len(images) - len(kept)} pictures cannot be read any more; start again")
    return h.numpy()
