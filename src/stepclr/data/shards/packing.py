"""`stepclr pack`: images of any source -> tar shards in WebDataset's layout, with an index; killed, it goes on.

Shard k holds the source's images k N to (k + 1) N, but for unreadable ones: `{row:09d}.jpg` and, of a labelled
image, `{row:09d}.cls`. A shard depends on nothing but its own images, so it does not matter when it was written.
"""

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from stepclr.data.decode import UnreadableError, decode, reasons, reduced, size_of, suffix_of
from stepclr.data.images import ImageSet
from stepclr.data.shards.index import INDEX, MEMBER, PLAN, Index, Part, Shard, load_index, write_index
from stepclr.data.stores import Encoded, attempts
from stepclr.errors import StepclrError
from stepclr.io import blake, checksum, held, torn, write_whole
from stepclr.threads import Progress

CHUNK = 256  # images that are read before they are written
CHECKED = 16  # px; a JPEG is quickly decoded to so few, all its bytes read
QUALITY = 90
END = tarfile.NUL * (2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Treatment:
    """How images get into shards: their own bytes, but those above `short_side` pixels reduced to it, as JPEG.

    Images that have no bytes, as those of an array, are written as PNG, or as JPEG where a quality is given.
    """

    short_side: int | None
    quality: int | None


@dataclass(frozen=True)
class Content:
    """One image as it is written."""

    bytes: bytes
    suffix: str
    size: tuple[int, int]
    """(height, width) in pixels."""


def pack(
    images: ImageSet,
    out: str | os.PathLike[str],
    per_shard: int = 10_000,
    short_side: int | None = None,
    quality: int | None = None,
    progress: Progress | None = None,
) -> tuple[int, int, int]:
    """Write shards of `per_shard` images and their index into the folder `out`.

    Returns the numbers of images, of shards, and of images left out.

    Args:
        short_side: images with a longer one are reduced to it and written as JPEG; None keeps every image's bytes.
        quality: of a JPEG that is written, 1 to 95; 90 of a reduced image.
        progress: called with (images done, images in all).

    The same call goes on where an earlier one was stopped, and ends in the same bytes; of a folder that is complete it
    verifies them, and writes a damaged shard again. Images that cannot be read are left out and listed in
    `skipped.csv`. Raises `StepclrError` if the folder holds anything else.
    """
    folder = Path(out)
    treatment = _treatment(images, per_shard, short_side, quality)
    plan = {"source": images.source, "of": len(images), "names": images.names_digest(), "per_shard": per_shard}
    plan |= {"classes": images.classes, **asdict(treatment)}
    _begin(folder, plan)
    parts = [range(k, min(k + per_shard, len(images))) for k in range(0, len(images), per_shard)]
    with held(folder, f"another process is packing into {folder}: let it end"):
        index = _complete(folder)
        for k, rows in enumerate(parts):
            whole = index.shards[k] if index else _shard_of(folder, k)
            if whole and checksum(folder / _name(k)) == whole.checksum:
                if progress:
                    progress(rows.stop, len(images))
                continue
            part = _write_shard(folder / _name(k), images, rows, treatment, progress)
            if index and part.shard != whole:
                raise StepclrError(f"{images.source} has changed since {folder} was packed: name another --out")
            if not index:
                part.write(_part_path(folder, k))
        if not index:
            _finish(folder, images, plan, len(parts))
        for left in (*folder.glob("*.part"), folder / PLAN):
            left.unlink(missing_ok=True)
        index = index or _complete(folder)
    assert index is not None
    return index.images, len(parts), len(images) - index.images


def _treatment(images: ImageSet, per_shard: int, short_side: int | None, quality: int | None) -> Treatment:
    for name, value, most in (
        ("per_shard", per_shard, 10**9),
        ("short_side", short_side, 10**6),
        ("quality", quality, 95),
    ):
        if value is not None and not 1 <= value <= most:
            raise StepclrError(f"{name} must be from 1 to {most:,}, not {value}")
    short_side = min((side for side in (short_side, images.short_side) if side), default=None)
    keeps_bytes = isinstance(images.store, Encoded)
    if quality is not None and keeps_bytes and short_side is None:
        raise StepclrError("quality is that of images which are reduced: give a short side too, or leave it out")
    return Treatment(short_side, quality or (QUALITY if keeps_bytes and short_side else None))


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Raise StepclrError if the folder holds anything but these very shards, or the beginning of them."""
    if folder.exists() and not folder.is_dir():
        raise StepclrError(f"{folder} is a file: name a folder as --out")
    folder.mkdir(parents=True, exist_ok=True)
    stored = next((path for path in (folder / INDEX, folder / PLAN) if path.exists()), None)
    if stored is None:
        if set(folder.iterdir()) != set(torn(folder)):
            raise StepclrError(f"{folder} holds something else: name another --out")
        write_whole(folder / PLAN, lambda file: file.write(json.dumps(plan, indent=1).encode()))
        return
    try:
        began = json.loads(stored.read_bytes())
        other = [name for name, value in plan.items() if began[name] != value]
    except (ValueError, KeyError, TypeError):
        raise StepclrError(f"{stored} is not of stepclr pack: name another --out") from None
    if other:
        name = other[0]
        told = f": {name} was {began[name]!r}, not {plan[name]!r}" if name != "names" else " (their names differ)"
        raise StepclrError(f"{folder} was packed from other images or in another way{told}; name another --out")


def _complete(folder: Path) -> Index | None:
    """The index of a folder that is packed to its end; None where it is not, or its index has rotted."""
    if not (folder / INDEX).exists():
        return None
    try:
        return load_index((folder / INDEX).read_bytes(), partial(_intact, folder), str(folder / INDEX))
    except StepclrError:
        return None


def _intact(folder: Path, name: str, expected: str) -> Path:
    if checksum(folder / name) != expected:
        raise ValueError(f"{name} has other bytes")
    return folder / name


def _finish(folder: Path, images: ImageSet, plan: dict[str, Any], count: int) -> None:
    def load(k: int) -> Part:
        part = Part.read(_part_path(folder, k))
        if part is None:
            raise StepclrError(f"{_part_path(folder, k)} was damaged meanwhile: the same command goes on")
        return part

    skipped = [pair for k in range(count) for pair in load(k).skipped]
    replace(images, skipped=[*images.skipped, *skipped]).list_skipped(folder / "skipped.csv")
    write_index(folder, [partial(load, k) for k in range(count)], plan, images.classes)


def _shard_of(folder: Path, k: int) -> Shard | None:
    part = Part.read(_part_path(folder, k))
    return part.shard if part else None


def _name(k: int) -> str:
    return f"{k:04d}.tar"


def _part_path(folder: Path, k: int) -> Path:
    return folder / f"{k:04d}.part"


def _write_shard(path: Path, images: ImageSet, rows: range, treatment: Treatment, progress: Progress | None) -> Part:
    records: list[tuple[int, ...]] = []
    names: list[bytes] = []
    skipped: list[tuple[str, str]] = []
    begin, length, digest = 0, 0, blake()

    def write(file: BufferedWriter) -> None:
        def put(content: bytes) -> None:
            nonlocal length
            file.write(content)
            digest.update(content)
            length += len(content)

        def member(name: str, content: bytes) -> int:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            put(info.tobuf(tarfile.USTAR_FORMAT))
            at = length
            put(content + tarfile.NUL * (-len(content) % tarfile.BLOCKSIZE))
            return at

        nonlocal begin
        for row, content in _contents(images, rows, treatment):
            if isinstance(content, UnreadableError):
                skipped.append((images.names[row], str(content)))
            else:
                label = int(images.labels[row])
                at = member(f"{row:09d}{content.suffix}", content.bytes)
                if label >= 0:
                    member(f"{row:09d}.cls", str(label).encode())
                records.append((at, label, begin, len(content.bytes), *content.size, zlib.crc32(content.bytes)))
                names.append(images.names[row].encode(errors="surrogateescape"))
                begin += len(names[-1])
            if progress:
                progress(row + 1, len(images))
        put(END)

    write_whole(path, write)
    shard = Shard(path.name, len(records), length, digest.hexdigest())
    return Part(shard, np.array(records, MEMBER), b"".join(names), skipped=skipped)


def _contents(images: ImageSet, rows: range, treatment: Treatment) -> Iterator[tuple[int, Content | UnreadableError]]:
    for start in range(rows.start, rows.stop, CHUNK):
        some = np.arange(start, min(start + CHUNK, rows.stop))
        found = attempts(lambda row: _content(images, row, treatment), some, images.store.threads)
        yield from zip(some.tolist(), found, strict=True)


def _content(images: ImageSet, i: int, treatment: Treatment) -> Content:
    row, store = int(images.rows[i]), images.store
    if not isinstance(store, Encoded):
        return _written(reduced(store.image(row, None), treatment.short_side), treatment.quality)
    with reasons(), store.open(row) as file:
        content = file.read()
    height, width = size_of(io.BytesIO(content))
    if treatment.short_side and min(height, width) > treatment.short_side:
        return _written(decode(io.BytesIO(content), treatment.short_side), treatment.quality)
    decode(io.BytesIO(content), CHECKED)
    return Content(content, suffix_of(io.BytesIO(content)), (height, width))


def _written(pixels: Tensor, quality: int | None) -> Content:
    file = io.BytesIO()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if quality:
        image.save(file, "JPEG", quality=quality)
    else:
        image.save(file, "PNG")
    return Content(file.getvalue(), ".jpg" if quality else ".png", (image.height, image.width))
