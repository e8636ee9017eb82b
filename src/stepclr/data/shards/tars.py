"""Tars of other programs (WebDataset's layout, or class folders): one pass over each finds what they contain."""

import hashlib
import io
import posixpath
import tarfile
import time
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from stepclr.data.decode import size_of
from stepclr.data.folders import LARGEST
from stepclr.data.formats import HEAD, DamagedError, UnreadableError, image_suffixes
from stepclr.data.ledger import ARRAY, Ignored, Ledger, suffix_of_name
from stepclr.data.memory import MAX_CLASSES
from stepclr.data.reading import Reading
from stepclr.data.recall import SETTLED, stamps
from stepclr.data.shards.cache import Place, copy, folder, index_file, make_room
from stepclr.data.shards.index import INDEX, MEMBER, Index, Part, Shard, load_index, write_index
from stepclr.errors import StepclrError
from stepclr.io import blake, checksum_of
from stepclr.threads import pool

PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
MISSING = "missing"
ANY_SIZE = Reading(max_pixels=2**62)
VERSION = "4"  # of what `scan` finds; raise it with any change there or in the index
MAX_CLS_BYTES = 32  # of a `.cls` that may be a class number


def scanned(place: Place, names: list[str]) -> Index:
    """The index of shards that came without one, from the cache, or made there by one pass over each shard."""
    paths = [place.path(name) for name in names]
    versions = _versions(place, paths)
    suffixes = sorted(image_suffixes())  # of more kinds once a package for them is installed
    key = checksum_of("\0".join([VERSION, *suffixes, *paths, *versions]).encode(errors="surrogateescape"))
    home = folder() / f"index-{key}"
    here = Place(None, str(home))
    with suppress(StepclrError):  # it is corrupt
        if (text := here.read(INDEX)) and (index := load_index(text, partial(index_file, here), str(home / INDEX))):
            return index
    try:
        _scan_all(place, names, versions, home)
    except OSError as error:
        why = error.strerror or error
        raise StepclrError(f"cannot write in {home}: {why}; STEPCLR_CACHE may name another folder") from error
    index = load_index(here.read(INDEX) or b"", partial(index_file, here), str(home / INDEX))
    assert index is not None
    return index


def _scan_all(place: Place, names: list[str], versions: list[str], home: Path) -> None:
    """Scan every shard, each into a file of its own, and join these to the index in `home`."""

    def part_path(k: int) -> Path:
        return home / f"{k}.part"

    def load(k: int) -> Part:
        part = Part.read(part_path(k))
        if part is None:  # not scanned yet; or another process has finished first, and deleted it
            part = _part(place, names[k], versions[k], f"{names[k]}/" if len(names) > 1 else "")
            part.write(part_path(k))
        return part

    def damage(k: int) -> str | None:
        """Scan shard k; what is wrong with it."""
        try:
            load(k)
        except DamagedError as error:
            return str(error)
        return None

    damages = list(pool().map(damage, range(len(names))))
    whole = [k for k, why in enumerate(damages) if why is None]
    damaged = [(name, why) for name, why in zip(names, damages, strict=True) if why is not None]
    write_index(home, [partial(load, k) for k in whole], {"damaged": damaged})
    for k in whole:
        part_path(k).unlink(missing_ok=True)


def _part(place: Place, name: str, version: str, prefix: str) -> Part:
    if version == MISSING:
        raise DamagedError(f"{place.path(name)} is missing")
    if place.system is None:
        return scan(Path(place.path(name)), place.path(name), prefix)
    path = folder() / f"shard-{version}.tar"  # until its checksum is known
    make_room(int(place.system.size(place.path(name)) or 0))
    try:
        checksum = copy(place.system, place.path(name), path, None)
    except DamagedError as error:  # perhaps a fault of the network: not to be remembered as one of the shard
        raise StepclrError(str(error)) from error
    part = scan(path, place.path(name), prefix)
    path.replace(path.with_name(f"shard-{checksum}.tar"))
    return part


def _versions(place: Place, paths: list[str]) -> list[str]:
    """A text for each file that changes when the file does."""
    if place.system is not None:
        return list(pool().map(lambda path: _remote_version(place.system, path), paths))
    now = time.time_ns()
    versions = []
    for stamp in stamps(Path("/"), paths):
        if not stamp:
            versions.append(MISSING)
        elif max(stamp[1:]) < now - SETTLED:
            versions.append(f"{stamp}")
        else:
            versions.append(f"{stamp} {now}")
    return versions


def _remote_version(system: Any, path: str) -> str:
    try:
        version = f"{path} {system.ukey(path)}"
    except FileNotFoundError:
        return MISSING
    except Exception as error:  # whatever the file system's client raises
        raise StepclrError(f"{path} cannot be reached: {type(error).__name__}: {error}") from error
    return checksum_of(version.encode())


@dataclass
class Members:
    """What the members of a tar are."""

    images: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The record of the index of each image, by its name."""
    arrays: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    """The .npy files, which are images where there are no others, by their names."""
    numbers: dict[str, int] = field(default_factory=dict)
    """The class number in each `.cls`, by its stem."""
    samples: set[str] = field(default_factory=set)
    """The stems of all files that describe an image: each is the name of a WebDataset sample."""
    ledger: Ledger = field(default_factory=Ledger)
    """What is left out."""

    def add(self, member: tarfile.TarInfo, file: BufferedReader) -> None:
        parts = member.name.split("/")
        name = "/".join(part for part in parts if part != ".")
        stem = _stems(name)[0]
        if name in self.images or (name.endswith(".cls") and stem in self.numbers):
            raise DamagedError(f"it contains {name} twice")
        if name.endswith(".cls") and _is_plain(member) and member.size <= MAX_CLS_BYTES:
            self.numbers[stem] = _number(name, _read(file, member))
            self.samples.add(stem)
            return
        folder = member.isdir() and suffix_of_name(name) not in self.ledger.suffixes
        if folder:
            return
        if not self.ledger.admits(name, lambda: _read(file, member, HEAD)):
            self.samples.add(stem)
            if suffix_of_name(name) == ARRAY:
                self.arrays[name] = member
            return
        self._admit(name, member, file)

    def admit_arrays_alone(self, file: BufferedReader) -> None:
        """The .npy files of a tar that has no other image are its images."""
        if not self.images:
            for name in self.ledger.arrays():
                self._admit(name, self.arrays[name], file)

    def _admit(self, name: str, member: tarfile.TarInfo, file: BufferedReader) -> None:
        """Enter a file that is an image by its name: in the index, or why it is left out."""
        if name.startswith("/") or ".." in name.split("/"):
            self.ledger.unreadable[name] = "its name leads out of the tar"
        elif not _is_plain(member):
            self.ledger.unreadable[name] = "a link, a device or a sparse file, not an image"
        elif member.size > LARGEST:
            self.ledger.unreadable[name] = f"{member.size:,} bytes, above the limit of {LARGEST:,}"
        else:
            content = _read(file, member)
            try:
                height, width = size_of(io.BytesIO(content), ANY_SIZE)
            except UnreadableError:
                height = width = 0
            record = (member.offset_data, -1, 0, member.size, height, width, zlib.crc32(content))
            self.images[name] = record

    def leave_one_image_of_each_sample(self) -> None:
        """Keep the image with the sample's own name: of `0000.jpg`, `0000.seg.png` and `0000.cls`, the first.

        Raises `DamagedError` where none of several images has the name of the class number that they share.
        """
        members: dict[str, list[str]] = {}
        for name in self.images:
            sample = next((stem for stem in _stems(name) if stem in self.samples), None)
            if sample is not None:
                members.setdefault(sample, []).append(name)
        for sample, names in members.items():
            own = [name for name in names if _stems(name)[0] == sample]
            if len(names) > 1 and not own and sample in self.numbers:
                raise DamagedError(f"{sample}.cls labels several images, {' and '.join(names[:2])}: keep one of them")
            for name in names:
                if own and name != own[0]:
                    del self.images[name]
                    self.ledger.ignored[name] = Ignored("further images of a sample", "masks or other versions")

    def label(self, name: str) -> int:
        """The class number of an image: that of the longest stem which has one; -1: none."""
        return next((self.numbers[stem] for stem in _stems(name) if stem in self.numbers), -1)


def scan(path: Path, where: str, prefix: str) -> Part:
    """The images of a tar, named after `prefix`, labeled by `.cls` members of the same sample, or else by folders.

    Nothing is unpacked, so a name cannot lead a file anywhere. Links and devices are not images. Raises `DamagedError`,
    which calls the tar `where`, if it is truncated, corrupt, compressed or not a tar.
    """
    members = Members()
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, blake).hexdigest()
            length = file.tell()
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while member := tar.next():
                    members.add(member, file)
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise DamagedError(f"byte {tar.offset:,} begins neither a member nor the end of a tar")
                members.admit_arrays_alone(file)
            members.leave_one_image_of_each_sample()
    except DamagedError as error:
        raise DamagedError(f"{where} is corrupt: {error}") from error
    except Exception as error:  # tarfile raises what its parsers raise on hostile headers
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(f"{where} cannot be read as an uncompressed tar: {why}") from error

    names = list(members.images)
    stored_names = [f"{prefix}{name}".encode(errors="surrogateescape") for name in names]
    table = np.array([*members.images.values()], MEMBER)
    table["name"] = np.cumsum([0, *map(len, stored_names)])[:-1]
    classes = None
    if members.numbers:
        table["label"] = [members.label(name) for name in names]
    else:
        folders = ["/".join(name.split("/")[:-1][:2]) for name in names]
        classes = sorted(set(folders))
        table["label"] = np.searchsorted(classes, folders) if folders else 0
    shard = Shard(posixpath.basename(where), len(names), length, checksum)
    skipped = [(f"{prefix}{name}", why) for name, why in members.ledger.unreadable.items()]
    # Far more members than images may be none: they are counted, not named.
    counts = Counter((one.kind, one.hint) for one in members.ledger.ignored.values())
    ignored = [(f"{shard.name}/*{kind}", kind, hint, n) for (kind, hint), n in counts.items()]
    return Part(shard, table, b"".join(stored_names), classes, skipped, ignored)


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member's bytes lie in the tar, one after the other."""
    return member.type in PLAIN and member.sparse is None


def _read(file: BufferedReader, member: tarfile.TarInfo, most: int = LARGEST) -> bytes:
    """A member's bytes, at most `most` of them."""
    file.seek(member.offset_data)
    size = min(member.size, most)
    content = file.read(size)
    if len(content) < size:
        raise DamagedError(f"truncated in {member.name}")
    return content


def _stems(name: str) -> list[str]:
    """The path up to each dot of the file's name, the longest first: `a/b.c.jpg` -> `a/b.c`, `a/b`.

    In WebDataset's layout the members of a sample have one of them in common.
    """
    folder, slash, base = name.rpartition("/")
    parts = base.split(".")
    ends = range(max(1, len(parts) - 1), 0, -1)
    return [f"{folder}{slash}{'.'.join(parts[:end])}" for end in ends]


def _number(name: str, content: bytes) -> int:
    text = content.decode("ascii", "replace").strip()
    if not text.isdecimal() or int(text) >= MAX_CLASSES:
        raise DamagedError(f"{name} contains {text!r}, which is not a class number")
    return int(text)
