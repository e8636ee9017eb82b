"""Images in a folder or a zip: which there are, what class each has, and how its bytes are read."""

import io
import os
import zipfile
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from stepclr.data.formats import HEAD, UnreadableError
from stepclr.data.images import ImageSet
from stepclr.data.ledger import Ignored, Ledger, suffix_of_name
from stepclr.data.recall import Stamp, checksums, known_checksums, stamps
from stepclr.data.stores import Files, LocalFiles, Rows
from stepclr.errors import StepclrError, fault_of

LARGEST = 2**30  # bytes; a member of a zip is read whole
IN_UTF8 = 0x800  # the flag of a zip's member whose name is in UTF-8
# A folder with these files is a run (pretraining/run.py): its charts are no images.
OF_A_RUN = {"config.json", "metrics.jsonl"}


@dataclass(eq=False)
class FolderStore(LocalFiles):
    """The files of `paths` under `root`, which is absolute: the working directory may change later."""

    root: Path
    paths: Sequence[str]

    def open(self, row: int) -> BufferedReader:
        return (self.root / self.paths[row]).open("rb")

    def stamped(self, rows: Rows) -> tuple[Path, list[str], list[Stamp]]:
        paths = [self.paths[row] for row in rows]
        return self.root, paths, stamps(self.root, paths)

    def checksums(self, rows: Rows, memory: Path | None = None) -> list[str]:
        return checksums(self.root, [self.paths[row] for row in rows], memory)

    def known_checksums(self, rows: Rows, memory: Path | None = None) -> list[str] | None:
        return known_checksums(self.root, [self.paths[row] for row in rows], memory)


@dataclass(eq=False)
class ZipStore(LocalFiles):
    """The members of a zip, never unpacked to disk; `path` is absolute, and the members' names have only slashes."""

    path: Path
    members: list[zipfile.ZipInfo]
    names: list[str]
    archive: zipfile.ZipFile | None = field(default=None, repr=False)
    process: int = 0
    """The process that opened the archive. A forked process opens its own: both would share one place in the file."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "archive": None}

    def open(self, row: int) -> io.BytesIO:
        info = self.members[row]
        if info.file_size > LARGEST:
            raise UnreadableError(f"{info.file_size:,} bytes, above the limit of {LARGEST:,}")
        if self.archive is None or self.process != os.getpid():
            self.archive, self.process = zipfile.ZipFile(self.path), os.getpid()
        # `archive.read` would unpack all there is, whatever size the zip states.
        with self.archive.open(info) as member:
            return io.BytesIO(member.read(info.file_size))

    def stamped(self, rows: Rows) -> tuple[Path, list[str], list[Stamp]]:
        # Bytes with the same CRC are the same, whenever they were written.
        members = [self.members[row] for row in rows]
        return self.path, [self.names[row] for row in rows], [(info.file_size, info.CRC) for info in members]

    def checksums(self, rows: Rows, memory: Path | None = None) -> list[str]:  # noqa: ARG002
        members = [self.members[row] for row in rows]
        return [f"{info.CRC:08x} {info.file_size}" for info in members]  # reading a member verifies its CRC

    known_checksums = checksums


def open_folder(root: Path) -> ImageSet:
    """The images under a folder; the first folder on an image's path is its class."""
    ledger = Ledger()
    paths = _find(root, ledger)
    return _labeled_by_folder(FolderStore(root.absolute(), paths), paths, paths, str(root), ledger)


def open_files(paths: Sequence[Path]) -> ImageSet:
    """Image files, without labels, in this order; each is named by its path as it was given.

    Files that are not images are listed as ignored. Raises StepclrError if none is an image.
    """
    ledger = Ledger()
    names = []
    once: dict[str, Path] = {}
    for path in paths:
        once.setdefault(os.path.realpath(path), path)  # a file may be given in several ways
    for path in once.values():
        # A file that is named is meant, even if it is hidden.
        file = Ledger()
        if file.admits(path.name.lstrip("."), partial(_first_bytes, path)):
            names.append(str(path))
        ledger.ignored |= {str(path): ignored for ignored in file.ignored.values()}
    names = names or ledger.arrays()
    if not names:
        hints = [f" ({ignored.hint})" for ignored in ledger.ignored.values() if ignored.hint][:1]
        others = f" (nor is any other of the {len(once):,} files)" if len(once) > 1 else ""
        raise StepclrError(f"{paths[0]} is not a folder, a zip, a tar or an image{''.join(hints)}{others}")
    store = FolderStore(Path.cwd(), names)
    if len(once) == 1:
        return _labeled_by_folder(store, names, [""], str(paths[0]), ledger)
    images = _labeled_by_folder(store, names, [""] * len(names), f"{len(once):,} files", ledger)
    return replace(images, parts=tuple(names))


def open_zip(path: Path) -> ImageSet:
    """The images in a zip; a folder that contains all the others is not a class."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # on a hostile directory zipfile raises what its parsers raise, not only its own errors
        raise StepclrError(f"{path} cannot be read as a zip: {fault_of(error)}") from error
    named = {_name(info): info for info in archive.infolist() if not info.filename.endswith("/")}
    ledger = Ledger()
    members = {}
    for name, info in named.items():
        if not ledger.admits(name, partial(_head, archive, info)):
            continue
        if name.startswith("/") or ".." in name.split("/"):
            ledger.unreadable[name] = "its name leads out of the zip"
        else:
            members[name] = info
    members = members or {name: named[name] for name in ledger.arrays()}
    names = sorted(members, key=lambda name: name.split("/"))

    # Whoever zips a folder has that folder around everything: it is not a class.
    paths = names
    if len({name.split("/")[0] for name in names}) == 1 and all("/" in name for name in names):
        paths = [name.split("/", 1)[1] for name in names]

    store = ZipStore(path.absolute(), [members[name] for name in names], names, archive, os.getpid())
    return _labeled_by_folder(store, names, paths, str(path), ledger)


def _labeled_by_folder(store: Files, names: list[str], paths: list[str], source: str, ledger: Ledger) -> ImageSet:
    if not names:
        known = f"{source} contains no image ({', '.join(sorted(ledger.suffixes))})"
        raise StepclrError("; ".join([known, *ledger.lines()]))
    folders = [path.split("/")[0] if "/" in path else "" for path in paths]  # "": directly in the source, no label
    classes = sorted(set(folders) - {""})
    number = {name: label for label, name in enumerate(classes)} | {"": -1}
    labels = np.array([number[name] for name in folders], np.int64)
    return ImageSet(store, np.arange(len(names)), labels, classes, names, source, ledger)


def _name(info: zipfile.ZipInfo) -> str:
    """A member's name. Programs such as macOS's write it in UTF-8 without saying so, and zipfile takes it for cp437."""
    name = info.filename
    if not info.flag_bits & IN_UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The first bytes of a member; none if they cannot be read."""
    try:
        with archive.open(info) as member:
            return member.read(HEAD)
    except Exception:  # zipfile raises what its parsers raise
        return b""


def _find(root: Path, ledger: Ledger) -> list[str]:
    """The images' paths under a folder, sorted; everything else that is there is entered in the ledger.

    Links are followed. Each folder is entered once, real folders before links, so that it has its own name.
    """
    paths, entered = [], set()
    waiting = deque([""])
    while waiting:
        inside = waiting.popleft()
        try:
            stat = (root / inside).stat()
            if (stat.st_dev, stat.st_ino) in entered:
                ledger.ignored[inside] = Ignored("link", "to folders that are read under another name")
                continue
            entered.add((stat.st_dev, stat.st_ino))
            with os.scandir(root / inside) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            ledger.unreadable[inside or "."] = str(error.strerror)
            continue
        if inside and {entry.name for entry in listed} >= OF_A_RUN:
            ledger.ignored[inside] = Ignored("run")
            continue
        for entry in listed:
            path = f"{inside}{entry.name}"
            link = entry.is_symlink()
            if os.path.isdir(entry) if link else entry.is_dir():
                if not ledger.admits_place(f"{path}/"):
                    continue
                if link:
                    waiting.append(f"{path}/")
                else:
                    waiting.appendleft(f"{path}/")
            elif not (os.path.isfile(entry) if link else entry.is_file()):
                _enter_no_file(path, link, ledger)
            elif ledger.admits(path, partial(_first_bytes, root / path)):
                paths.append(path)
    return sorted(paths or ledger.arrays(), key=lambda path: path.split("/"))


def _enter_no_file(path: str, link: bool, ledger: Ledger) -> None:
    """Enter what is neither a folder nor a file: where its name may be an image's, an image is missing."""
    if not ledger.admits_place(path):
        return
    suffix = suffix_of_name(path)
    if suffix and suffix not in ledger.suffixes:
        ledger.ignored[path] = Ignored(suffix)
    else:
        ledger.unreadable[path] = "a link to a file that does not exist" if link else "a device or a pipe, not a file"


def _first_bytes(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
