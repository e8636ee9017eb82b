"""Images that occur more than once: within a set, and in both the training and the test set."""

from collections.abc import Iterable, Iterator

import torch

from stepclr.data.images import ImageSet
from stepclr.data.labels import class_counts, split_folders
from stepclr.errors import StepclrError
from stepclr.tools.curate.details import groups, near_pairs
from stepclr.tools.doctor.findings import Finding, finding
from stepclr.tools.doctor.scan import DECODED_SIDE, Scan

Pairs = list[tuple[int, int]]  # indices of images
EQUAL = 0.995  # least similarity of the thumbnails of equal images that were read from two formats


def duplicate_findings(scan: Scan) -> Iterator[Finding]:
    """Findings about images that occur more than once in a set, and about duplicates whose labels disagree."""
    images = scan.images
    exact, near = _duplicates(scan)
    for name, pairs, says, do in (
        ("exact-duplicates", exact, "are exact copies of others (same bytes or same pixels)", "keep one of each group"),
        (
            "near-duplicates",
            near,
            "are recompressed, resized, cropped or brightened versions of others",
            "check them, and keep one of each group",
        ),
    ):
        found = groups(pairs)
        extra = sum(len(group) - 1 for group in found)
        examples = (" = ".join(images.names[i] for i in group[:3]) for group in found)
        do = f"{do} ({len(found):,} groups): a copy counts as a negative"
        yield finding(name, "warning", extra, says, do, examples)
    labeled = [_one_per_label(images, group) for group in groups(exact + near)]
    conflicts = [" = ".join(shown) for shown in labeled if len(shown) > 1]
    says, do = (
        "groups of duplicates have more than one label",
        "choose one label: training and scores use both",
    )
    yield finding("conflicting-labels", "error", len(conflicts), says, do, conflicts)


def leakage_findings(scan: Scan, test_scan: Scan) -> Iterator[Finding]:
    """Findings about test images that are also training images, perhaps with another label, and about new classes."""
    exact, near = _shared(test_scan, scan)
    test, train = test_scan.images, scan.images
    for name, pairs, says in (
        ("leakage-exact", exact, "test images are exact copies of training images (same bytes or same pixels)"),
        ("leakage-near", near, "test images are versions of training images"),
    ):
        examples = (f"{test.names[i]} = {train.names[j]}" for i, j in pairs)
        do = "remove them from one of the two sets: scores on them are not meaningful"
        yield finding(name, "error", len(pairs), says, do, examples)
    conflicts = []
    for i, j in exact + near:
        labels = test.class_name(i), train.class_name(j)
        if None not in labels and labels[0] != labels[1]:
            conflicts.append(f"{test.names[i]} ({labels[0]}) = {train.names[j]} ({labels[1]})")
    says = "of these have another label in the training set"
    yield finding("leakage-conflicting", "error", len(conflicts), says, "choose one label", conflicts)
    in_test = {name for name, n in class_counts(test).items() if n}
    in_train = {name for name, n in class_counts(train).items() if n}
    if in_test and in_train:
        new, missing = sorted(in_test - in_train), sorted(in_train - in_test)
        do = "remove them, or add training images of them"
        yield finding("test-classes", "warning", len(new), "classes occur in the test set only", do, new)
        do = "scores are those of the other classes"
        yield finding("test-lacks-classes", "note", len(missing), "classes have no test images", do, missing)
    if why := split_folders(test):
        yield finding("test-split-folders", "warning", 1, "test set has splits for classes", why)


def _duplicates(scan: Scan) -> tuple[Pairs, Pairs]:
    """Exact and near duplicates among the readable images; of exact ones only the first can have near ones."""
    first: dict[bytes, int] = {}
    exact, unique = [], []
    for i in scan.readable.tolist():
        same = _known(first, scan, i, scan)
        if same is None:
            unique.append(i)
        else:
            exact.append((same, i))
        for key in scan.each[i].keys:
            first.setdefault(key, i)
    pairs, similarity = near_pairs(scan.thumbnails(unique))
    candidates = {(unique[i], unique[j]): s for (i, j), s in zip(pairs.tolist(), similarity.tolist(), strict=True)}
    return _exact_and_near(candidates, exact, scan, scan)


def _shared(test: Scan, train: Scan) -> tuple[Pairs, Pairs]:
    """(test image, training image) for each test image that is an exact, or else a near duplicate of one."""
    first: dict[bytes, int] = {}
    bank = train.readable.tolist()
    for i in bank:
        for key in train.each[i].keys:
            first.setdefault(key, i)
    exact, unique = [], []
    for i in test.readable.tolist():
        same = _known(first, test, i, train)
        if same is None:
            unique.append(i)
        else:
            exact.append((i, same))
    if not unique or not bank:
        return exact, []
    pairs, similarity = near_pairs(test.thumbnails(unique), train.thumbnails(bank))
    best: dict[int, tuple[float, int]] = {}
    for (i, j), score in zip(pairs.tolist(), similarity.tolist(), strict=True):
        best[unique[i]] = max(best.get(unique[i], (0.0, -1)), (score, bank[j]))
    return _exact_and_near({(i, j): score for i, (score, j) in sorted(best.items())}, exact, test, train)


def _known(first: dict[bytes, int], scan: Scan, i: int, other: Scan) -> int | None:
    """The image of `other` that has the same bytes or pixels as image i."""
    content, pixels = scan.each[i].keys
    if content in first:
        return first[content]
    # The checksum is of reduced pixels: of a larger image all pixels are compared.
    if pixels in first and (min(scan.each[i].size) <= DECODED_SIDE or _equal(scan, i, other, first[pixels])):
        return first[pixels]
    return None


def _exact_and_near(
    candidates: dict[tuple[int, int], float], exact: Pairs, scan: Scan, other: Scan
) -> tuple[Pairs, Pairs]:
    """The near pairs, without those that turn out to be equal, such as a PNG of a JPEG: these are exact."""
    near: Pairs = []
    for (i, j), similarity in candidates.items():
        equal = similarity > EQUAL and scan.each[i].size == other.each[j].size and _equal(scan, i, other, j)
        (exact if equal else near).append((i, j))
    return sorted(exact), near


def _equal(scan: Scan, i: int, other: Scan, j: int) -> bool:
    try:
        return torch.equal(scan.images.read([i])[0], other.images.read([j])[0])
    except StepclrError:  # deleted since the scan
        return False


def _one_per_label(images: ImageSet, group: Iterable[int]) -> list[str]:
    """The first image of a group for each label that occurs in it."""
    first: dict[str, str] = {}
    for i in group:
        name = images.class_name(i)
        if name is not None:
            first.setdefault(name, f"{images.names[i]} ({name})")
    return list(first.values())
