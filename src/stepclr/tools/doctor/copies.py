"""Images that are there more than once: within a set, and between training and test."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from stepclr.data.images import ImageSet
from stepclr.errors import StepclrError
from stepclr.tools.curate.details import groups, near_pairs
from stepclr.tools.doctor.findings import Finding, find
from stepclr.tools.doctor.look import LOOKED_AT, Look

Pairs = list[tuple[int, int]]  # indices of images
EQUAL = 0.995  # how alike thumbnails of equal images are at least, read in two formats


def of_duplicates(seen: Look) -> Iterator[Finding]:
    """Images that are there more than once, and those of them whose labels disagree."""
    images = seen.images
    exact, near = _within(seen)
    for name, pairs, says, do in (
        ("exact-duplicates", exact, "are copies of others, to the byte or the pixel", "of each group keep one"),
        (
            "near-duplicates",
            near,
            "are versions of others: compressed, resized, cropped or lit anew",
            "look at them, and of each group keep one",
        ),
    ):
        found = groups(pairs)
        spare = sum(len(group) - 1 for group in found)
        shown = (" = ".join(images.names[i] for i in group[:3]) for group in found)
        yield find(name, "warning", spare, says, f"{do} ({len(found):,} groups): a copy is a negative too", shown)
    torn = [group for group in groups(exact + near) if len(_labels(images, group)) > 1]
    yield find(
        "conflicting-labels",
        "error",
        len(torn),
        "groups of duplicates have more than one label",
        "decide on one: supcon and every score would learn both",
        (" = ".join(_one_a_label(images, group)) for group in torn),
    )


def of_leakage(seen: Look, test: Look) -> Iterator[Finding]:
    """Images of `test` that the training set has too, those with another label there, and classes that it lacks."""
    exact, near = _across(test, seen)
    here, there = test.images, seen.images
    for name, pairs, says in (
        ("leakage-exact", exact, "test images are among the training images, to the byte or the pixel"),
        ("leakage-near", near, "test images have a version among the training images"),
    ):
        shown = (f"{here.names[i]} = {there.names[j]}" for i, j in pairs)
        yield find(name, "error", len(pairs), says, "take them out of either: what they score proves nothing", shown)
    named = [(i, j, _label(here, i), _label(there, j)) for i, j in exact + near]
    torn = [(i, j, a, b) for i, j, a, b in named if a and b and a != b]
    yield find(
        "leakage-conflicting",
        "error",
        len(torn),
        "of these have another label there",
        "decide on one",
        (f"{here.names[i]} ({a}) = {there.names[j]} ({b})" for i, j, a, b in torn),
    )
    only = [name for name in here.classes if there.classes and name not in there.classes]
    yield find("test-classes", "warning", len(only), "classes are in the test set only", "nothing can learn them", only)


def _within(seen: Look) -> tuple[Pairs, Pairs]:
    """Exact and near duplicates among the readable images; of exact ones only the first has near ones too."""
    first: dict[bytes, int] = {}
    exact, alone = [], []
    for i in seen.readable.tolist():
        same = _known(first, seen, i, seen)
        if same is None:
            alone.append(i)
        else:
            exact.append((same, i))
        for key in seen.each[i].keys:
            first.setdefault(key, i)
    pairs, alike = near_pairs(_thumbnails(seen, alone))
    found = [(alone[i], alone[j]) for i, j in pairs.tolist()]
    return _sorted_out(found, alike.tolist(), exact, seen, seen)


def _across(test: Look, seen: Look) -> tuple[Pairs, Pairs]:
    """(test image, training image) of each test image that is an exact, or else a near duplicate of one."""
    first: dict[bytes, int] = {}
    for i in seen.readable.tolist():
        for key in seen.each[i].keys:
            first.setdefault(key, i)
    exact, alone = [], []
    for i in test.readable.tolist():
        same = _known(first, test, i, seen)
        if same is None:
            alone.append(i)
        else:
            exact.append((i, same))
    bank = seen.readable.tolist()
    if not alone or not bank:
        return exact, []
    pairs, alike = near_pairs(_thumbnails(test, alone), _thumbnails(seen, bank))
    best: dict[int, tuple[float, int]] = {}
    for (i, j), score in zip(pairs.tolist(), alike.tolist(), strict=True):
        best[alone[i]] = max(best.get(alone[i], (0.0, -1)), (score, bank[j]))
    found = [(i, j) for i, (_, j) in sorted(best.items())]
    return _sorted_out(found, [score for _, (score, _) in sorted(best.items())], exact, test, seen)


def _known(first: dict[bytes, int], seen: Look, i: int, other: Look) -> int | None:
    """The image of `other` that is image i, to the byte or the pixel."""
    content, pixels = seen.each[i].keys
    if content in first:
        return first[content]
    if pixels in first and (min(seen.each[i].size) <= LOOKED_AT or _equal(seen, i, other, first[pixels])):
        return first[pixels]
    return None


def _sorted_out(found: Pairs, alike: list[float], exact: Pairs, seen: Look, other: Look) -> tuple[Pairs, Pairs]:
    """The pairs found to be near, those apart that turn out to be equal: a PNG of a JPEG, say."""
    near: Pairs = []
    for (i, j), score in zip(found, alike, strict=True):
        equal = score > EQUAL and seen.each[i].size == other.each[j].size and _equal(seen, i, other, j)
        (exact if equal else near).append((i, j))
    return sorted(exact), near


def _equal(seen: Look, i: int, other: Look, j: int) -> bool:
    try:
        return torch.equal(seen.images.read([i])[0], other.images.read([j])[0])
    except StepclrError:  # gone since
        return False


def _thumbnails(seen: Look, at: list[int]) -> torch.Tensor:
    return seen.thumbnails[torch.from_numpy(np.searchsorted(seen.readable, at))]


def _label(images: ImageSet, i: int) -> str:
    return images.class_name(i) or ""


def _one_a_label(images: ImageSet, group: Iterable[int]) -> list[str]:
    first: dict[str, str] = {}
    for i in group:
        first.setdefault(_label(images, i), f"{images.names[i]} ({_label(images, i)})")
    return [shown for label, shown in first.items() if label]


def _labels(images: ImageSet, group: Iterable[int]) -> set[str]:
    return {_label(images, i) for i in group} - {""}
