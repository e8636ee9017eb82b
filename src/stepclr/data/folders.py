"""Images in a folder or a zip: which there are, what class each has, where its bytes are."""

import io
import os
import zipfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepclr.data.decode import SUFFIXES, UnreadableError
from stepclr.data.images import ImageSet
from stepclr.data.stores import Encoded
from stepclr.errors import StepclrError
from stepclr.io import fingerprints, recall, stamps

Ask = Callable[[int], str | None]
LARGEST = 2**30  # bytes; a zip's member is read whole


def open_folder(root: Path) -> ImageSet:
    """The images under a folder; the first folder on an image's path is its class."""
    paths, skipped = _find(root)
    return _labelled_by_folder(in_files(root.absolute(), paths), paths, paths, str(root), skipped)


def in_files(base: Path, paths: Sequence[str]) -> Encoded:
    """The files of these paths under `base`, which is absolute: the working directory may change later."""

    def contents(rows: NDArray[np.int64], memory: Path, read: bool) -> list[str] | None:
        return fingerprints(base, [paths[row] for row in rows], memory, read)

    def remember(what: str, ask: Ask, rows: NDArray[np.int64], memory: Path) -> list[str | None]:
        named = [paths[row] for row in rows]
        return recall(what, base, named, stamps(base, named), lambda i: ask(int(rows[i])), memory) or []

    return Encoded(lambda row: (base / paths[row]).open("rb"), contents, remember)


def open_zip(path: Path) -> ImageSet:
    """The images in a zip, never unpacked to disk; a folder that holds all the others is looked through."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # besides its own errors zipfile lets out what its parsers raise on a hostile directory
        raise StepclrError(f"{path} cannot be read as a zip: {error}") from error
    named = {info.filename.replace("\\", "/"): info for info in archive.infolist() if not info.filename.endswith("/")}
    members = {name: info for name, info in named.items() if is_image(name)}
    outside = [name for name in members if name.startswith("/") or ".." in name.split("/")]
    paths = sorted(members.keys() - set(outside), key=lambda name: name.split("/"))
    tops = {name.split("/")[0] for name in paths}
    one_top = len(tops) == 1 and all("/" in name for name in paths)
    inside = [name.split("/", 1)[1] for name in paths] if one_top else paths
    base = path.absolute()

    def read(row: int) -> io.BytesIO:
        info = members[paths[row]]
        if info.file_size > LARGEST:
            raise UnreadableError(f"{info.file_size:,} bytes, above the limit of {LARGEST:,}")
        with archive.open(info) as member:  # `archive.read` would unpack all there is, whatever size the zip says
            return io.BytesIO(member.read(info.file_size))

    def contents(rows: NDArray[np.int64], memory: Path, read: bool) -> list[str]:  # noqa: ARG001
        found = [members[paths[row]] for row in rows]
        return [f"{info.CRC:08x} {info.file_size}" for info in found]  # reading a member checks its CRC

    def remember(what: str, ask: Ask, rows: NDArray[np.int64], memory: Path) -> list[str | None]:
        # Bytes with the same CRC are the same, whenever they were written.
        stamped = [(members[paths[row]].file_size, members[paths[row]].CRC) for row in rows]
        return recall(what, base, [paths[row] for row in rows], stamped, lambda i: ask(int(rows[i])), memory) or []

    skipped = [(name, "its name leads out of the zip") for name in outside]
    return _labelled_by_folder(Encoded(read, contents, remember), paths, inside, str(path), skipped)


def _labelled_by_folder(
    store: Encoded, names: list[str], paths: list[str], source: str, skipped: list[tuple[str, str]]
) -> ImageSet:
    if not names:
        why = f"; {': '.join(skipped[0])}" if skipped else ""
        raise StepclrError(f"{source} holds no image ({', '.join(sorted(SUFFIXES))}){why}")
    folders = [path.split("/")[0] if "/" in path else "" for path in paths]
    classes = sorted(set(folders) - {""})
    number = {name: label for label, name in enumerate(classes)} | {"": -1}
    labels = np.array([number[name] for name in folders], np.int64)
    return ImageSet(store, np.arange(len(names)), labels, classes, names, source, skipped)


def is_image(name: str) -> bool:
    """Whether a path's suffix is an image's, and no part of it is hidden."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and all(_is_shown(part) for part in name.split("/"))


def _is_shown(part: str) -> bool:
    return part == ".." or not (part.startswith(".") or part == "__MACOSX")


def _find(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The images' paths under a folder, sorted, and (path, reason) of folders that cannot be looked into.

    Links are followed, each folder is entered once: real folders before links, so that it is known by its own name.
    """
    found, skipped, entered = [], [], set()
    waiting = deque([""])
    while waiting:
        inside = waiting.popleft()
        try:
            stat = (root / inside).stat()
            if (stat.st_dev, stat.st_ino) in entered:
                continue
            entered.add((stat.st_dev, stat.st_ino))
            with os.scandir(root / inside) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            skipped.append((inside or ".", str(error.strerror)))
            continue
        for entry in listed:
            path = f"{inside}{entry.name}"
            if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                if _is_shown(entry.name):
                    (waiting.append if entry.is_symlink() else waiting.appendleft)(f"{path}/")
            elif is_image(entry.name) and (os.path.isfile(entry) if entry.is_symlink() else entry.is_file()):
                found.append(path)
    return sorted(found, key=lambda path: path.split("/")), skipped
