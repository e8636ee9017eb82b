"""`Ledger`: what was skipped, ignored or changed when a source was opened and its images were read."""

import csv
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from stepclr.data.formats import format_of, image_suffixes
from stepclr.errors import counted, one_line
from stepclr.io import write_csv

KINDS = 6  # that a line names
LONGEST = 10  # letters of a suffix
NO_SUFFIX = "without a suffix"
IGNORED, CHANGED = "ignored: ", "changed: "  # begin the reason of what is no image, and of an image that is read
ARRAY = ".npy"  # an image where a source has no others; beside images it may be anything

# Names that operating systems, NAS boxes and programs give to folders and files of their own, in lower case.
SYSTEM = {
    "__macosx",
    "@eadir",
    "@tmp",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "@recently-snapshot",
    "@__thumb",
}
SYSTEM |= {"system volume information", "lost+found", "found.000", "temporary items", "network trash folder"}
SYSTEM |= {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"}
OLD_BINS = {"RECYCLER", "RECYCLED"}  # in capitals; in small letters they may be classes

HINTS = {
    ".heic .heif .hif": "install stepclr[heic] to read them",
    ".cr2 .cr3 .crw .nef .nrw .arw .sr2 .dng .orf .rw2 .raf .pef .srw .x3f .3fr .iiq .raw .rwl": (
        "raw data of cameras: convert them to JPEG or TIFF"
    ),
    ".jxl .svg .pdf .psd .eps .ai .exr .hdr .dcm .dicom .fits .nii .tga .ico": "convert them to PNG",
    ".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv .3gp .mts": "videos: extract their frames",
    ARRAY: "arrays beside other images: give them as a source of their own",
    ".npz .h5 .hdf5 .mat .pt .pkl": "arrays: load them in Python and pass uint8 images",
    ".tar": "shards: give DIR/{0000..0127}.tar or one DIR/x.tar as the source",
    ".zip": "give it as the source",
    ".gz .tgz .bz2 .xz .7z .rar": "archives: unpack them",
}
HINT_OF = {suffix: hint for suffixes, hint in HINTS.items() for suffix in suffixes.split()}


class Ignored(NamedTuple):
    """What is not an image: the kind by which a line counts it, how to read it, and how many there are at a path."""

    kind: str
    hint: str = ""
    number: int = 1


@dataclass
class Ledger:
    """All that was skipped, ignored or changed under a source. An image that is not listed here is read as it is.

    A source and all sets that are made of it share one ledger, so that the caller who opened the source finds there
    what happened while the images were read.
    """

    unreadable: dict[str, str] = field(default_factory=dict)
    """Images that cannot be read, and why."""
    ignored: dict[str, Ignored] = field(default_factory=dict)
    """Files and folders that are not images."""
    remarks: dict[str, str] = field(default_factory=dict)
    """Images that are read, and what they lose or gain by it."""
    notes: list[str] = field(default_factory=list)
    """What else was left out when the source was opened, one line each."""
    suffixes: set[str] = field(default_factory=image_suffixes, repr=False)
    """The suffixes of image files that can be read here."""

    def admits(self, path: str, head: Callable[[], bytes]) -> bool:
        """Whether the file at `path`, relative to the source, is an image; it is entered as ignored if it is not.

        A suffix decides. Where there is none, `head` reads the first bytes, and these decide. Hidden files and those of
        an operating system are no images, whatever is in them.
        """
        if not self.admits_place(path):
            return False
        suffix = suffix_of_name(path)
        if not suffix:
            kind = format_of(head())
            suffix = {None: NO_SUFFIX, "HEIF": ".heic"}.get(kind, "")
        if not suffix or suffix in self.suffixes:
            return True
        self.ignored[path] = Ignored(suffix, HINT_OF.get(suffix, ""))
        return False

    def arrays(self) -> list[str]:
        """The .npy files of a source that has no other image: they are its images, and no longer ignored."""
        paths = [path for path, ignored in self.ignored.items() if ignored.kind == ARRAY]
        for path in paths:
            del self.ignored[path]
        return paths

    def admits_place(self, path: str) -> bool:
        """Whether no part of `path` is hidden or an operating system's; the first such part is entered as ignored.

        A folder's path ends in a slash.
        """
        parts = path.split("/")
        for number, part in enumerate(parts, 1):
            if is_aside(part):
                slash = "/" if number < len(parts) else ""
                kind = "hidden" if part.startswith(".") else part + slash
                self.ignored["/".join(parts[:number]) + slash] = Ignored(kind)
                return False
        return True

    def lines(self) -> list[str]:
        """A line for what is skipped, ignored, and changed when it is read; none for what did not occur."""
        return [*self._skipped(), *self.lines_of_ignored(), *self._changed()]

    def lines_of_ignored(self) -> list[str]:
        """What is known when a source has been opened and none of its images read."""
        counts: Counter[str] = Counter()
        for kind, hint, number in self.ignored.values():
            counts[f"{kind} ({hint})" if hint else kind] += number
        if not counts:
            return list(self.notes)
        several = counted(counts.total(), "file or folder", "files and folders")
        return [*self.notes, f"ignored {several}: {_kinds(counts)}"]

    def lines_of_read(self) -> list[str]:
        """What was found while images were read."""
        return [*self._skipped(), *self._changed()]

    def _skipped(self) -> list[str]:
        if not self.unreadable:
            return []
        name, reason = next(iter(self.unreadable.items()))
        images = counted(len(self.unreadable), "image", "images")
        line = f"skipped {images} that cannot be read, for example {one_line(name)}: {reason}"
        others = len({re.sub(r"[\d,]+", "", why) for why in self.unreadable.values()}) - 1
        if others:
            line += f" ({counted(others, 'other reason', 'other reasons')})"
        return [line]

    def _changed(self) -> list[str]:
        if not self.remarks:
            return []
        images = counted(len(self.remarks), "image", "images")
        return [f"changed {images}: {_kinds(Counter(self.remarks.values()))}"]

    def write(self, path: Path) -> None:
        """Write a CSV of (path, reason) with every entry; if there is none, no file, nor that of an earlier command."""
        rows = [("path", "reason"), *self.unreadable.items()]
        for name, (kind, hint, number) in self.ignored.items():
            several = f"{number:,} " if number > 1 else ""
            rows.append((name, f"{IGNORED}{several}{kind}" + (f" ({hint})" if hint else "")))
        rows += [(name, f"{CHANGED}{text}") for name, text in self.remarks.items()]
        if len(rows) > 1:
            write_csv(path, rows)
        else:
            path.unlink(missing_ok=True)


def unreadable_in(path: Path) -> dict[str, str]:
    """The images that a file of `Ledger.write` lists as unreadable, and why."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [(row[0], row[1]) for row in csv.reader(file) if len(row) == 2]
    return {name: why for name, why in rows[1:] if not why.startswith((IGNORED, CHANGED))}


def _kinds(counts: Counter[str]) -> str:
    """The most frequent kinds with their numbers."""
    kinds = [f"{number:,} {one_line(kind)}" for kind, number in counts.most_common(KINDS)]
    if len(counts) > KINDS:
        kinds.append(f"{counts.total() - sum(n for _, n in counts.most_common(KINDS)):,} others")
    return ", ".join(kinds)


def is_aside(name: str) -> bool:
    """Whether files and folders of this name are hidden or belong to an operating system."""
    return name.lower() in SYSTEM or name in OLD_BINS or (name.startswith(".") and name != "..")


def suffix_of_name(path: str) -> str:
    """The suffix of a file's name, such as `.jpg`; "" where what follows the last dot is not the name of a kind.

    In "IMG 12.30.45", "Dr. Who" and "photo.jpg?width=640" it is not.
    """
    stem, _, suffix = path.rsplit("/", 1)[-1].rpartition(".")
    letters = re.sub("[_~-]", "", suffix)
    if not stem or not letters.isascii() or not letters.isalnum() or letters.isdecimal() or len(suffix) > LONGEST:
        return ""
    return f".{suffix.lower()}"
