"""What is wrong with single images, classes and copies: each finding says how many, which, and what to do."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stepclr.data.copies import Fingerprints, copies
from stepclr.data.details import groups
from stepclr.data.images import ImageSet
from stepclr.data.labels import class_counts, present_classes, split_folders
from stepclr.data.ledger import is_aside
from stepclr.data.levels import BANDS_LEFT
from stepclr.data.shards.store import OF_A_SHARD
from stepclr.tools.doctor.scan import Scan, ScannedImage

Severity = Literal["error", "warning", "note"]
SEVERITIES = ("error", "warning", "note")
EXAMPLES = 3  # of a finding
TINY = 32  # px, a side
HUGE = 50_000_000  # pixels
LONG = 5  # long side over short side
FEW = 10  # images of a class
IMBALANCED = 10  # images of the largest class over those of the smallest
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `count` followed by `says` is a sentence, `do` is the advice."""

    name: str
    severity: Severity
    count: int
    says: str
    do: str
    examples: list[str]


def findings_of(images: ImageSet, scan: Scan, test_scan: Scan | None, size: int) -> list[Finding]:
    """All findings about a set and, where there are any, its test images; size: side of a view, pixels."""
    findings = [*image_findings(scan, size), *class_findings(images), *duplicate_findings(scan)]
    if test_scan:
        broken = [f for f in image_findings(test_scan, size) if f.severity == "error"]
        findings += [replace(f, name=f"test-{f.name}", says=f"test images {f.says}") for f in broken]
        findings += leakage_findings(scan, test_scan)
    return findings


def finding(name: str, severity: Severity, count: int, says: str, do: str, examples: Iterable[str] = ()) -> Finding:
    """A finding with its first few examples."""
    return Finding(name, severity, count, says, do, list(examples)[:EXAMPLES])


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that apply to something, the most severe first."""
    return sorted((f for f in findings if f.count), key=lambda f: SEVERITIES.index(f.severity))


# Findings about single images: severity, what they say after their count, and what to do.
SKIPPED = "restore or replace them; pretraining skips them and lists them"
IMAGE_FINDINGS: dict[str, tuple[Severity, str, str]] = {
    "unreadable": ("error", "cannot be read", SKIPPED),
    "empty": ("error", "are empty files", SKIPPED),
    "unsupported": ("error", "are sound but cannot be read as they are", "keep them; the reason says what helps"),
    "left-out": ("warning", "files are not read", "keep them; the reason says what helps"),
    "in-shards": ("error", "are in damaged shards", "restore the shards; their images are left out"),
    "missing": ("error", "files or folders cannot be opened", "check their permissions, and where links lead"),
    "blank": ("warning", "have a single color", "delete them: all their views look the same"),
    "tiny": ("warning", "have a side below {tiny} px", "delete them, or train on smaller views: --size {smallest}"),
    "small": ("note", "are smaller than a view ({size} px) and will be enlarged", "or choose a smaller --size"),
    "huge": ("warning", f"have more than {HUGE // 10**6} million pixels", "shrink them: they are slow to decode"),
    "long": ("warning", f"are more than {LONG} times as long as wide", "crop them: one view shows only a small part"),
    "animated": ("note", "are animated", "nothing, if their first frame is enough"),
    "deep": ("note", "have more than 8 bits per channel and become 8-bit", "check the brightness: stepclr views"),
    "bands": ("note", "have more bands than red, green and blue", "to keep a fourth, such as infrared: --channels 4"),
    "changed": ("note", "are not read as they are", "nothing, if the rest is enough"),
    "cmyk": ("note", "are CMYK images", "convert them to RGB if their colors matter"),
}


def image_findings(scan: Scan, size: int) -> Iterator[Finding]:
    """What is wrong with single images: broken, or of a color, size, shape or kind that loses something.

    size: side of a view, pixels.
    """
    examples: dict[str, list[str]] = {name: [] for name in IMAGE_FINDINGS}
    of_the_set = {scan.images.names[i] for i, image in enumerate(scan.each) if image.why}
    for path, why in scan.images.skipped:
        if path not in of_the_set:
            examples["in-shards" if why.startswith(OF_A_SHARD) else "missing"].append(f"{path}: {why}")
    for path, (kind, hint, number) in scan.images.ledger.ignored.items():
        if hint:
            examples["left-out"] += [f"{path}: {kind} ({hint})"] * number
    for i, image in enumerate(scan.each):
        for name in _wrong(image, size):
            described = image.why or image.remark or f"{image.size[1]} x {image.size[0]}, {image.mode}"
            examples[name].append(f"{scan.images.names[i]}: {described}")
    shortest = min((min(image.size) for image in scan.each if min(image.size)), default=size)
    numbers = {"size": size, "tiny": min(TINY, size), "smallest": max(4, shortest)}
    for name, (severity, says, do) in IMAGE_FINDINGS.items():
        yield finding(name, severity, len(examples[name]), says.format(**numbers), do.format(**numbers), examples[name])


def _wrong(image: ScannedImage, size: int) -> list[str]:
    """The names of the findings that an image belongs to."""
    if image.why:
        if image.sound:
            return ["unsupported"]
        return ["empty" if image.length == 0 else "unreadable"]
    height, width = image.size
    applies = {
        "blank": image.blank,
        "tiny": min(height, width) < min(TINY, size),
        "small": min(TINY, size) <= min(height, width) < size,
        "huge": height * width > HUGE,
        "long": max(height, width) > LONG * min(height, width),
        "animated": image.animated,
        "deep": image.mode in DEEP_MODES,
        "bands": BANDS_LEFT in image.remark,
        "changed": bool(image.remark) and not image.animated and image.remark != BANDS_LEFT,
        "cmyk": image.mode == "CMYK",
    }
    return [name for name, yes in applies.items() if yes]


def class_findings(images: ImageSet) -> Iterator[Finding]:
    """Findings about classes: empty, small, imbalanced."""
    counts = class_counts(images)
    empty = [name for name, n in counts.items() if not n] + _empty_folders(images)
    if images.labeling and images.labeling.missing:
        do = "correct the paths, or give the folder that has these images"
        yield finding("label-paths", "error", 1, f"table of labels names no images: {images.labeling.missing}", do)
    if why := split_folders(images):
        yield finding("split-folders", "warning", 1, "set has splits for classes", why)
    yield finding("empty-class", "warning", len(empty), "classes have no images", "add images, or delete them", empty)
    small = [f"{name}: {n}" for name, n in sorted(counts.items(), key=lambda item: item[1]) if 0 < n < FEW]
    says = f"classes have fewer than {FEW} images"
    yield finding("small-class", "note", len(small), says, "do not rely on scores for them", small)
    # The count is 1 or 0: either the set is imbalanced or it is not.
    present = sorted((n, name) for name, n in counts.items() if n)
    imbalanced = len(present) > 1 and present[-1][0] > IMBALANCED * present[0][0]
    yield finding(
        "imbalance",
        "warning",
        int(imbalanced),
        f"the largest class has more than {IMBALANCED} times the images of the smallest",
        "with a --loss that uses labels, add --balanced",
        [f"{name}: {n}" for n, name in present[:1] + present[-1:]],
    )


def _empty_folders(images: ImageSet) -> list[str]:
    root = Path(images.source)
    if images.chosen is not None or images.labeling or not images.classes or not root.is_dir():
        return []
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_aside(path.name))
    return [name for name in folders if name not in images.classes]


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
        grouped = groups(pairs)
        extra = sum(len(group) - 1 for group in grouped)
        examples = (" = ".join(images.names[i] for i in group[:3]) for group in grouped)
        do = f"{do} ({len(grouped):,} groups): a copy counts as a negative"
        yield finding(name, "warning", extra, says, do, examples)
    labeled = [_one_per_label(images, group) for group in groups(exact + near)]
    conflicts = [" = ".join(shown) for shown in labeled if len(shown) > 1]
    says, do = "groups of duplicates have more than one label", "choose one label: training and scores use both"
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
