"""What is wrong with single images and with classes: each finding says how many, which, and what to do."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stepclr.data.images import ImageSet
from stepclr.tools.doctor.look import Look, Seen

GRAVITIES = ("error", "warning", "note")
SHOWN = 3  # examples of a finding
TINY = 32  # px
HUGE = 50_000_000  # pixels
LONG = 5  # long side over short side
FEW = 10  # images of a class
IMBALANCED = 10  # the largest class over the smallest
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")

Finding = dict[str, Any]


def find(name: str, gravity: str, count: int, says: str, do: str, examples: Iterable[Any] = ()) -> Finding:
    """One finding; `says` follows the count."""
    shown = list(examples)[:SHOWN]
    return {"name": name, "gravity": gravity, "count": count, "says": says, "do": do, "examples": shown}


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Those that found something, gravest first."""
    return sorted((f for f in findings if f["count"]), key=lambda f: GRAVITIES.index(f["gravity"]))


def of_each(seen: Look, size: int) -> Iterator[Finding]:
    """What single images are: unreadable, empty, blank, tiny, huge, long, and of kinds that lose something."""
    images, each = seen.images, seen.each

    def named(name: str, gravity: str, wrong: Iterable[bool], says: str, do: str, why: bool = False) -> Finding:
        at = [i for i, is_so in enumerate(wrong) if is_so]
        shown = [f"{images.names[i]}: {each[i].why if why else _shape(each[i])}" for i in at]
        return find(name, gravity, len(at), says, do, shown)

    def is_empty(s: Seen) -> bool:
        return s.length == 0

    broken = [s.why != "" and not is_empty(s) for s in each]
    left_out = "delete or replace them; pretraining leaves them out and lists them"
    yield named("unreadable", "error", broken, "cannot be read", left_out, why=True)
    yield named("empty", "error", map(is_empty, each), "are files without a byte", left_out, why=True)
    folders = [f"{path}: {why}" for path, why in images.skipped]
    yield find("closed", "error", len(folders), "folders or files cannot be looked into", "mind their rights", folders)
    good = [not s.why for s in each]
    short = [min(s.size) for s in each]
    yield named(
        "blank",
        "warning",
        (ok and s.blank for ok, s in zip(good, each, strict=True)),
        "have one color all over",
        "delete them: no view of them can be told from any other",
    )
    yield named(
        "tiny",
        "warning",
        (ok and side < min(TINY, size) for ok, side in zip(good, short, strict=True)),
        f"have a side under {min(TINY, size)} px",
        f"delete them, or train on smaller views: --size {max(4, min([s for s in short if s], default=size))}",
    )
    yield named(
        "small",
        "note",
        (ok and min(TINY, size) <= side < size for ok, side in zip(good, short, strict=True)),
        f"are smaller than a view, {size} px, and will be enlarged",
        "choose a smaller --size if these are many",
    )
    yield named(
        "huge",
        "warning",
        (ok and s.size[0] * s.size[1] > HUGE for ok, s in zip(good, each, strict=True)),
        f"have more than {HUGE // 10**6} million pixels",
        "reduce them: they take long to decode, and views see them at twice the view's side",
    )
    yield named(
        "long",
        "warning",
        (ok and max(s.size) > LONG * min(s.size) for ok, s in zip(good, each, strict=True)),
        f"are over {LONG} times as long as wide",
        "cut them up: a crop of nearly square shape sees little of them",
    )
    for name, wrong, says, do in (
        ("animated", [s.animated for s in each], "are animated", "nothing, if their first frame will do"),
        ("deep", [s.mode in DEEP for s in each], "have 16 bits or more a pixel", "nothing, if 8 of them will do"),
        ("cmyk", [s.mode == "CMYK" for s in each], "are CMYK", "convert them to RGB if their colors matter"),
    ):
        yield named(name, "note", wrong, says, do)


def _shape(seen: Seen) -> str:
    return f"{seen.size[1]} x {seen.size[0]}, {seen.mode}"


def of_labels(images: ImageSet) -> Iterator[Finding]:
    """What the classes are: empty, small, uneven."""
    counts = class_counts(images)
    empty = [name for name, n in counts.items() if not n] + _empty_folders(images)
    yield find("empty-class", "warning", len(empty), "classes have no image", "fill or delete them", empty)
    small = {name: n for name, n in counts.items() if 0 < n < FEW}
    yield find(
        "small-class",
        "note",
        len(small),
        f"classes have under {FEW} images",
        "expect no score to be trusted for them",
        [f"{name}: {n}" for name, n in small.items()],
    )
    there = sorted((n, name) for name, n in counts.items() if n)
    uneven = len(there) > 1 and there[-1][0] > IMBALANCED * there[0][0]
    yield find(
        "imbalance",
        "warning",
        int(uneven),
        f"the largest class has more than {IMBALANCED} times the images of the smallest",
        "with --loss supcon or cross-entropy, add --balanced",
        [f"{name}: {n}" for n, name in there[:1] + there[-1:]],
    )


def class_counts(images: ImageSet) -> dict[str, int]:
    """Images of each class."""
    counts = np.bincount(images.labels[images.labels >= 0], minlength=len(images.classes)).tolist()
    return dict(zip(images.classes, counts, strict=True))


def _empty_folders(images: ImageSet) -> list[str]:
    root = Path(images.source)
    if images.chosen is not None or not images.classes or not root.is_dir():
        return []
    inside = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [name for name in inside if name not in images.classes]
