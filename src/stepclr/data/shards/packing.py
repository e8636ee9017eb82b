"""`stepclr pack`: images of any source -> tar shards in WebDataset's layout, with an index; it can be resumed.

Shard k contains the source's images k N to (k + 1) N, except unreadable ones: `{index:09d}.jpg` and, of a labeled
image, `{index:09d}.cls`. A shard depends only on its own images, so it does not matter when it was written.
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
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from stepclr.data.decode import decoded, reduced, size_of, suffix_of
from stepclr.data.formats import UnreadableError, reasons
from stepclr.data.images import ImageSet
from stepclr.data.order import spread
from stepclr.data.reading import RGB
from stepclr.data.shards.index import INDEX, MEMBER, PLAN, Index, Part, Shard, load_index, write_index
from stepclr.data.stores import attempts
from stepclr.errors import StepclrError, check_whole
from stepclr.io import blake, checksum, checksum_of, locked, new_file, temporary_files
from stepclr.threads import Progress

CHUNK = 256  # images that are read before they are written
VERIFIED_SIDE = 16  # px; a JPEG is quickly decoded to so few, and all its bytes are read
QUALITY = 90
# What plans of an earlier version do not say: what was meant then, and what could be anything.
OLDER = {"value_range": None, "channels": None, "labels": None}
UNSAID = {"max_pixels", "content"}
SAMPLE = 256  # images in memory whose pixels are compared, spread over all
DIFFERENCES = {"names": "their names differ", "content": "their pixels or labels differ"}
END = tarfile.NUL * (2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class PackedShards:
    """What `pack` has written."""

    images: int
    shards: int
    skipped: int
    """Images that could not be read and are left out."""


@dataclass(frozen=True)
class Treatment:
    """How images are written: unchanged, or, above `short_side` pixels, reduced to it and encoded as JPEG.

    Images without a file, such as those of an array, are encoded as PNG, or as JPEG if a quality is given. What is
    neither gray nor RGB is encoded as a .npy.
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
    remark: str = ""
    """What the image loses or gains when it is read."""


def pack(
    images: ImageSet,
    out: str | os.PathLike[str],
    per_shard: int = 10_000,
    short_side: int | None = None,
    quality: int | None = None,
    progress: Progress | None = None,
) -> PackedShards:
    """Write shards of `per_shard` images and their index into the folder `out`.

    Args:
        short_side: images with a longer one are reduced to it and written as JPEG (.npy where they are neither gray
            nor RGB); None keeps every image's bytes.
        quality: JPEG quality from 1 to 95; 90 by default for reduced images.
        progress: called with (images done, images in all).

    After an interruption the same call resumes, and ends in the same bytes. In a complete folder it verifies the
    shards, and writes corrupt ones again. Images that cannot be read are left out and listed in `skipped.csv`. Raises
    `StepclrError` if the folder contains anything else, and if no image can be read.
    """
    folder = Path(out)
    treatment = _treatment(images, per_shard, short_side, quality)
    plan = {"source": images.source, "of": len(images), "names": images.names_checksum(), "per_shard": per_shard}
    plan |= {"classes": images.classes, **asdict(treatment)}
    plan["value_range"] = list(images.value_range) if images.value_range else None
    plan["channels"] = None if images.channels == RGB else images.channels
    plan["max_pixels"] = images.store.reading.limit
    plan["labels"] = images.labels_checksum() if images.labeling else None
    plan["content"] = None if images.store.files else _content_checksum(images)
    _begin(folder, plan)
    ranges = [range(k, min(k + per_shard, len(images))) for k in range(0, len(images), per_shard)]
    with locked(folder, f"another process is packing into {folder}; wait until it ends"):
        index = _complete(folder)
        for k, indices in enumerate(ranges):
            # A shard that is complete is only verified.
            known = index.shards[k] if index else _shard_of(folder, k)
            if known and checksum(folder / _name(k)) == known.checksum:
                if progress:
                    progress(indices.stop, len(images))
                continue
            part = _write_shard(folder / _name(k), images, indices, treatment, progress)
            if index is None:
                part.write(_part_path(folder, k))
            elif part.shard != known:
                raise StepclrError(f"{images.source} has changed since {folder} was packed; choose another folder")
        if index is None:
            _finish(folder, images, plan, len(ranges))
        for temporary in (*folder.glob("*.part"), folder / PLAN):
            temporary.unlink(missing_ok=True)
        index = index or _complete(folder)
    assert index is not None
    return PackedShards(index.images, len(ranges), len(images) - index.images)


def _treatment(images: ImageSet, per_shard: int, short_side: int | None, quality: int | None) -> Treatment:
    limits = (("per_shard", per_shard, 10**9), ("short_side", short_side, 10**6), ("quality", quality, 95))
    for name, value, largest in limits:
        if value is not None and not 1 <= value <= largest:
            raise StepclrError(f"{name} must be from 1 to {largest:,}, not {value}")
        check_whole(name, value, 1)
    short_side = min((side for side in (short_side, images.short_side) if side), default=None)
    keeps_bytes = images.store.files and short_side is None
    if quality is not None and keeps_bytes:
        raise StepclrError("quality applies to images that are reduced; give short_side too, or leave quality out")
    if images.channels not in (1, RGB):
        if quality is not None:
            raise StepclrError(f"quality is that of JPEG, which does not have {images.channels} channels; leave it out")
        return Treatment(short_side, None)
    if quality is None and images.store.files and short_side is not None:
        quality = QUALITY
    return Treatment(short_side, quality)


def _content_checksum(images: ImageSet) -> str:
    """A checksum of the labels and of some images' pixels: those of images in memory have no names of their own."""
    some = images.rows[spread(len(images), SAMPLE)]
    pixels = attempts(lambda row: checksum_of(images.store.image(row, None).numpy().tobytes()), some, False)
    return checksum_of("\n".join([images.labels_checksum(), *map(str, pixels)]).encode())


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Raise StepclrError if the folder contains anything but these very shards, or the first of them."""
    if folder.exists() and not folder.is_dir():
        raise StepclrError(f"{folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    stored = next((path for path in (folder / INDEX, folder / PLAN) if path.exists()), None)
    if stored is None:
        if set(folder.iterdir()) != set(temporary_files(folder)):
            raise StepclrError(f"{folder} is not an unfinished pack; choose another folder")
        with new_file(folder / PLAN) as file:
            file.write(json.dumps(plan, indent=1, default=np.generic.item).encode())
        return
    try:
        earlier = OLDER | json.loads(stored.read_bytes())
        said = [name for name in plan if name in earlier or name not in UNSAID]
        differing = [name for name in said if earlier[name] != plan[name]]
    except (ValueError, KeyError, TypeError):
        raise StepclrError(f"{stored} was not written by stepclr pack; choose another folder") from None
    if differing:
        name = differing[0]
        difference = DIFFERENCES.get(name, f"{name} was {earlier[name]!r}, not {plan[name]!r}")
        raise StepclrError(
            f"{folder} was packed from other images or with other settings: {difference}; choose another folder"
        )


def _complete(folder: Path) -> Index | None:
    """The index of a folder that is completely packed; None if it is not, or its index is corrupt."""
    if not (folder / INDEX).exists():
        return None
    try:
        return load_index((folder / INDEX).read_bytes(), partial(_intact, folder), str(folder / INDEX))
    except StepclrError:
        return None


def _intact(folder: Path, name: str, expected: str) -> Path:
    if checksum(folder / name) != expected:
        raise ValueError(f"{name} has another checksum")
    return folder / name


def _finish(folder: Path, images: ImageSet, plan: dict[str, Any], count: int) -> None:
    def load(k: int) -> Part:
        part = Part.read(_part_path(folder, k))
        if part is None:
            raise StepclrError(f"{_part_path(folder, k)} was corrupted in the meantime; run the same command again")
        return part

    packed = 0
    for k in range(count):
        part = load(k)
        images.ledger.unreadable |= part.skipped
        images.ledger.remarks |= part.changed
        packed += part.shard.images
    if not packed:
        # The folder is left as it was, so that it can be used once the images can be read.
        for written in (*(folder / _name(k) for k in range(count)), *folder.glob("*.part"), folder / PLAN):
            written.unlink()
        name, why = next(iter(images.ledger.unreadable.items()))
        raise StepclrError(f"no image of {images.source} can be read, such as {name}: {why}")
    images.ledger.write(folder / "skipped.csv")
    write_index(folder, [partial(load, k) for k in range(count)], plan, images.classes)


def _shard_of(folder: Path, k: int) -> Shard | None:
    part = Part.read(_part_path(folder, k))
    return part.shard if part else None


def _name(k: int) -> str:
    return f"{k:04d}.tar"


def _part_path(folder: Path, k: int) -> Path:
    return folder / f"{k:04d}.part"


class TarWriter:
    """An open tar, and the length and the checksum of what was written to it."""

    def __init__(self, file: BufferedWriter) -> None:
        self.file = file
        self.length = 0
        self.content = blake()

    def put(self, content: bytes) -> None:
        self.file.write(content)
        self.content.update(content)
        self.length += len(content)

    def add(self, name: str, content: bytes) -> int:
        """Add a member and return the offset of its bytes."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self.put(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.length
        self.put(content + tarfile.NUL * (-len(content) % tarfile.BLOCKSIZE))
        return offset


def _write_shard(path: Path, images: ImageSet, indices: range, treatment: Treatment, progress: Progress | None) -> Part:
    records: list[tuple[int, ...]] = []
    names = bytearray()
    skipped: list[tuple[str, str]] = []
    changed: list[tuple[str, str]] = []
    with new_file(path) as file:
        tar = TarWriter(file)
        for i, content in _contents(images, indices, treatment):
            if isinstance(content, UnreadableError):
                skipped.append((images.names[i], str(content)))
            else:
                if content.remark:
                    changed.append((images.names[i], content.remark))
                label = int(images.labels[i])
                offset = tar.add(f"{i:09d}{content.suffix}", content.bytes)
                if label >= 0:
                    tar.add(f"{i:09d}.cls", str(label).encode())
                crc = zlib.crc32(content.bytes)
                records.append((offset, label, len(names), len(content.bytes), *content.size, crc))
                names += images.names[i].encode(errors="surrogateescape")
            if progress:
                progress(i + 1, len(images))
        tar.put(END)
    shard = Shard(path.name, len(records), tar.length, tar.content.hexdigest())
    return Part(shard, np.array(records, MEMBER), bytes(names), skipped=skipped, changed=changed)


def _contents(
    images: ImageSet, indices: range, treatment: Treatment
) -> Iterator[tuple[int, Content | UnreadableError]]:
    for start in range(indices.start, indices.stop, CHUNK):
        some = np.arange(start, min(start + CHUNK, indices.stop))
        contents = attempts(lambda i: _content(images, i, treatment), some, images.store.files)
        yield from zip(some.tolist(), contents, strict=True)


def _content(images: ImageSet, i: int, treatment: Treatment) -> Content:
    row = int(images.rows[i])
    with reasons():
        file = images.store.open(row)
    if file is None:
        return encoded(reduced(images.store.image(row, None), treatment.short_side), treatment.quality)
    with reasons(), file:
        content = file.read()
    reading = images.store.reading
    height, width = size_of(io.BytesIO(content), reading)
    smaller = treatment.short_side and min(height, width) > treatment.short_side
    # Where the bytes are kept, decoding only shows that they can be read.
    pixels, remark = decoded(io.BytesIO(content), treatment.short_side if smaller else VERIFIED_SIDE, reading)
    if smaller:
        return replace(encoded(pixels, treatment.quality), remark=remark)
    return Content(content, suffix_of(io.BytesIO(content), reading), (height, width), remark)


def encoded(pixels: UInt8[Tensor, "c h w"], quality: int | None) -> Content:
    """An image as a file: JPEG where a quality is given, else PNG; a .npy where it is neither gray nor RGB."""
    file, size = io.BytesIO(), (pixels.shape[1], pixels.shape[2])
    if len(pixels) not in (1, RGB):
        np.save(file, pixels.permute(1, 2, 0).contiguous().numpy())
        return Content(file.getvalue(), ".npy", size)
    image = tv.to_pil_image(pixels)
    if quality:
        image.save(file, "JPEG", quality=quality)
    else:
        image.save(file, "PNG")
    return Content(file.getvalue(), ".jpg" if quality else ".png", size)
