"""Tars that somebody else wrote (WebDataset's layout, or class folders): one pass over each says what they hold."""

import hashlib
import io
import posixpath
import tarfile
import time
import zlib
from contextlib import suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from stepclr.data.decode import DamagedError, UnreadableError, size_of
from stepclr.data.folders import LARGEST, is_image
from stepclr.data.memory import MOST_CLASSES
from stepclr.data.shards.cache import Place, copy, folder, index_file, make_room
from stepclr.data.shards.index import INDEX, MEMBER, Index, Part, Shard, load_index, write_index
from stepclr.errors import StepclrError
from stepclr.io import SETTLED, blake, stamps
from stepclr.threads import pool

PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
MISSING = "missing"
LOOK = "1"  # of what `look_through` finds; raise it with any change there or in the index
LONGEST = 32  # bytes of a `.cls` that may be a class number


def looked_through(place: Place, names: list[str]) -> Index:
    """The index of shards that came without one, from the cache or made there by one pass over each."""
    paths = [place.path(name) for name in names]
    prints = _prints(place, paths)
    digest = hashlib.blake2b("\0".join([LOOK, *paths, *prints]).encode(errors="surrogateescape"), digest_size=16)
    home = folder() / f"index-{digest.hexdigest()}"
    here = Place(None, str(home))
    with suppress(StepclrError):  # it has rotted
        if (text := here.read(INDEX)) and (index := load_index(text, partial(index_file, here), str(home / INDEX))):
            return index
    try:
        _look_through_all(place, names, prints, home)
    except OSError as error:
        why = error.strerror or error
        raise StepclrError(f"cannot write in {home}: {why}; STEPCLR_CACHE may name another folder") from error
    index = load_index(here.read(INDEX) or b"", partial(index_file, here), str(home / INDEX))
    assert index is not None
    return index


def _look_through_all(place: Place, names: list[str], prints: list[str], home: Path) -> None:
    def kept(k: int) -> Path:
        return home / f"{k}.part"

    def look(k: int) -> Part:
        part = _part(place, names[k], prints[k], f"{names[k]}/" if len(names) > 1 else "")
        part.write(kept(k))
        return part

    def try_to_look(k: int) -> str | None:
        """Leaves what is found in the cache; what is wrong with the shard."""
        try:
            load(k)
        except DamagedError as error:
            return str(error)
        return None

    def load(k: int) -> Part:
        return Part.read(kept(k)) or look(k)  # another process may have come to the end first

    wrong = list(pool().map(try_to_look, range(len(names))))
    whole = [k for k, why in enumerate(wrong) if why is None]
    damaged = [(name, why) for name, why in zip(names, wrong, strict=True) if why is not None]
    write_index(home, [partial(load, k) for k in whole], {"damaged": damaged})
    for k in whole:
        kept(k).unlink(missing_ok=True)


def _part(place: Place, name: str, fingerprint: str, prefix: str) -> Part:
    if fingerprint == MISSING:
        raise DamagedError(f"{place.path(name)} is missing")
    if place.system is None:
        return look_through(Path(place.path(name)), place.path(name), prefix)
    path = folder() / f"shard-{fingerprint}.tar"  # until its checksum is known
    make_room(int(place.system.size(place.path(name)) or 0))
    try:
        checksum = copy(place.system, place.path(name), path, None)
    except DamagedError as error:  # the network's fault, perhaps: nothing to remember the shard by
        raise StepclrError(str(error)) from error
    part = look_through(path, place.path(name), prefix)
    path.replace(path.with_name(f"shard-{checksum}.tar"))
    return part


def _prints(place: Place, paths: list[str]) -> list[str]:
    """What changes when a file does."""
    if place.system is not None:
        return list(pool().map(lambda path: _remote_print(place.system, path), paths))
    now = time.time_ns()
    found = []
    for stamp in stamps(Path("/"), paths):
        settled = stamp and max(stamp[1:]) < now - SETTLED
        found.append(f"{stamp}" if settled else f"{stamp} {now}" if stamp else MISSING)
    return found


def _remote_print(system: Any, path: str) -> str:
    try:
        facts = f"{path} {system.ukey(path)}"
    except FileNotFoundError:
        return MISSING
    except Exception as error:  # whatever the file system's client raises
        raise StepclrError(f"{path} cannot be reached: {type(error).__name__}: {error}") from error
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def look_through(path: Path, where: str, prefix: str) -> Part:
    """The images of a tar, named after `prefix`, labelled by `.cls` members of the same key, or else by folders.

    Nothing is unpacked: names say where nothing goes. Links and devices are no images. Raises `DamagedError` if the
    tar is cut short, altered, compressed or none at all, which names it as `where`.
    """
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, blake).hexdigest()
            length = file.tell()
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                images, numbers, skipped = _members(tar, file)
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise DamagedError(f"what is at byte {tar.offset:,} is neither a member nor the end of a tar")
    except DamagedError as error:
        raise DamagedError(f"{where} is damaged: {error}") from error
    except Exception as error:  # tarfile lets out what its parsers raise on hostile headers
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(f"{where} cannot be read as an uncompressed tar: {why}") from error
    names = [f"{prefix}{member}".encode(errors="surrogateescape") for member, _ in images]
    table = np.array([record for _, record in images], MEMBER)
    table["name"] = np.cumsum([0, *map(len, names)])[:-1]
    folders = None
    if numbers:
        table["label"] = [numbers.get(_key(member), -1) for member, _ in images]
    else:
        own = ["/".join(member.split("/")[:-1][:2]) for member, _ in images]
        folders = sorted(set(own))
        table["label"] = np.searchsorted(folders, own) if own else 0
    shard = Shard(posixpath.basename(where), len(images), length, checksum)
    listed = [(f"{prefix}{member}", why) for member, why in skipped]
    return Part(shard, table, b"".join(names), folders, listed)


def _members(
    tar: tarfile.TarFile, file: BufferedReader
) -> tuple[list[tuple[str, tuple[int, ...]]], dict[str, int], list[tuple[str, str]]]:
    """(name, record) of each image, the class number of each key that has one, (name, reason) of what is left out."""
    images: list[tuple[str, tuple[int, ...]]] = []
    numbers: dict[str, int] = {}
    skipped: list[tuple[str, str]] = []
    while member := tar.next():
        parts = member.name.split("/")
        name = "/".join(part for part in parts if part != ".")
        plain = member.type in PLAIN and member.sparse is None
        if name.endswith(".cls") and plain and member.size <= LONGEST:
            numbers[_key(name)] = _number(name, _read(file, member))
        if not is_image(name):
            continue
        if name.startswith("/") or ".." in parts:
            skipped.append((name, "its name leads out of the tar"))
        elif not plain:
            skipped.append((name, "a link, a device or a sparse file, no image"))
        elif member.size > LARGEST:
            skipped.append((name, f"{member.size:,} bytes, above the limit of {LARGEST:,}"))
        else:
            content = _read(file, member)
            try:
                height, width = size_of(io.BytesIO(content))
            except UnreadableError:
                height = width = 0
            record = (member.offset_data, -1, 0, member.size, height, width, zlib.crc32(content))
            images.append((name, record))
    return images, numbers, skipped


def _read(file: BufferedReader, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    content = file.read(member.size)
    if len(content) < member.size:
        raise DamagedError(f"cut short in {member.name}")
    return content


def _key(name: str) -> str:
    """WebDataset's: members with the same path up to the first dot of the file's name belong together."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _number(name: str, content: bytes) -> int:
    text = content.decode("ascii", "replace").strip()
    if not text.isdecimal() or int(text) >= MOST_CLASSES:
        raise DamagedError(f"{name} holds {text!r}, no class number")
    return int(text)
