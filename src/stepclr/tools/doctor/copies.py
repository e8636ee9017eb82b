"""Images that occur more than once: within a set, and in both the training and the test set."""

from collections.abc import Iterable, Iterator

from stepclr.data.copies import Fingerprints, copies
from stepclr.data.details import groups
from stepclr.data.images import ImageSet
from stepclr.data.labels import present_classes, split_folders
from stepclr.tools.doctor.findings import Finding, finding
from stepclr.tools.doctor.scan import Scan


def duplicate_findings(scan: Scan) -> Iterator[Finding]:
    """Findings about images that occur more than once in a set, and about duplicates whose labels disagree."""
    images = scan.images
    exact, near = copies(_fingerprints(scan))
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
    exact, near = copies(_fingerprints(test_scan), _fingerprints(scan))
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
    in_test, in_train = set(present_classes(test)), set(present_classes(train))
    if in_test and in_train:
        new, missing = sorted(in_test - in_train), sorted(in_train - in_test)
        do = "remove them, or add training images of them"
        yield finding("test-classes", "warning", len(new), "classes occur in the test set only", do, new)
        do = "scores are those of the other classes"
        yield finding("test-lacks-classes", "note", len(missing), "classes have no test images", do, missing)
    if why := split_folders(test):
        yield finding("test-split-folders", "warning", 1, "test set has splits for classes", why)


def _fingerprints(scan: Scan) -> Fingerprints:
    indices = scan.readable.tolist()
    keys: list[tuple[bytes, ...]] = [scan.each[i].keys for i in indices]
    return Fingerprints(scan.images, indices, keys, scan.sizes, scan.thumbnails(indices))


def _one_per_label(images: ImageSet, group: Iterable[int]) -> list[str]:
    """The first image of a group for each label that occurs in it."""
    first: dict[str, str] = {}
    for i in group:
        name = images.class_name(i)
        if name is not None:
            first.setdefault(name, f"{images.names[i]} ({name})")
    return list(first.values())
