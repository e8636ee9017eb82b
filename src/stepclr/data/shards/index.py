"""The index of shards: 40 bytes per image, read from the disk when they are needed and not kept in memory.

    index.json     the shards with their counts, sizes and checksums; the classes; how the images were treated
    members.npy    one `MEMBER` per image, shard after shard
    names.bin      the images' names, end to end

`stepclr pack` writes the index next to its shards. For other shards one pass over each makes it, in the cache.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from stepclr.data.images import Names
from stepclr.data.order import ShardOrder
from stepclr.data.reading import AS_DECLARED, Reading
from stepclr.errors import StepclrError, fault_of
from stepclr.io import checksum, new_file

FORMAT = "stepclr shards 1"
INDEX, MEMBERS, NAMES = "index.json", "members.npy", "names.bin"
PLAN = "packing.json"  # what is being packed; deleted once the index is written
MEMBER = np.dtype(
    [
        ("offset", "<i8"),  # of the image's bytes in its shard
        ("label", "<i8"),  # -1: none
        ("name", "<i8"),  # where it begins in names.bin
        ("size", "<u4"),  # bytes
        ("height", "<u4"),  # pixels, upright; 0: unreadable
        ("width", "<u4"),
        ("crc", "<u4"),  # CRC-32 of the image's bytes
    ]
)
CHECKSUM = re.compile(r"[0-9a-f]{32}")
RECORD = struct.Struct("<qqqIIII")


def read_at(path: str | Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file, or fewer if it ends before; -1: all up to its end."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(size)


@dataclass(frozen=True)
class Shard:
    """One shard as index.json describes it."""

    name: str
    images: int
    bytes: int
    checksum: str


@dataclass(eq=False)
class Part:
    """What one shard contains, before it is in the index."""

    shard: Shard
    members: NDArray[Any]
    names: bytes
    classes: list[str] | None = None
    """The folders that the labels are indices into, at most two levels deep; None: labels are class numbers."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str, str, int]] = field(default_factory=list)
    """(path, kind, hint, count) of members that are no images."""
    changed: list[tuple[str, str]] = field(default_factory=list)
    """(name, remark) of images that were not packed as they are."""

    def write(self, path: Path) -> None:
        facts = {**asdict(self.shard), "classes": self.classes, "skipped": self.skipped, "ignored": self.ignored}
        facts["changed"] = self.changed
        content = b"\n".join([json.dumps(facts).encode(), self.members.tobytes() + self.names])
        with new_file(path) as file:
            file.write(hashlib.blake2b(content).digest() + content)

    @staticmethod
    def read(path: Path) -> "Part | None":
        """The part that was written there; None if there is none or it is corrupt."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.blake2b(content[64:]).digest() != content[:64]:
            return None
        header, _, rest = content[64:].partition(b"\n")
        facts = json.loads(header)
        classes, ignored = facts.pop("classes"), _ignored(facts.pop("ignored"))
        skipped, changed = ([(name, text) for name, text in facts.pop(key)] for key in ("skipped", "changed"))
        shard = Shard(**facts)
        end = shard.images * MEMBER.itemsize
        return Part(shard, np.frombuffer(rest[:end], MEMBER), rest[end:], classes, skipped, ignored, changed)


@dataclass(eq=False)
class Index:
    """An index whose files are `members` and `names`."""

    members: Path
    names: Path
    shards: list[Shard]
    classes: list[str]
    damaged: list[tuple[str, str]]
    """(shard, what is wrong with it) of those that could not be scanned."""
    skipped: list[tuple[str, str]]
    ignored: list[tuple[str, str, str, int]]
    reading: Reading = AS_DECLARED
    """The value range and the channels that the images were packed with."""

    def __post_init__(self) -> None:
        table = self.table()
        if table.dtype != MEMBER or table.shape != (self.images,):
            raise ValueError(f"{MEMBERS} does not have {self.images} images")
        self.head = int(getattr(table, "offset", 0))

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    @cached_property
    def ends(self) -> Int64[np.ndarray, " shards"]:
        """The row after each shard's last image."""
        return np.cumsum([shard.images for shard in self.shards], dtype=np.int64)

    def table(self) -> NDArray[Any]:
        """All members, mapped for as long as the caller holds them."""
        return np.load(self.members, mmap_mode="r" if self.images else None, allow_pickle=False)

    def place(self, row: int) -> tuple[int, int, int]:
        """(offset, size, crc) of an image's bytes in its shard."""
        offset, _, _, size, _, _, crc = RECORD.unpack(read_at(self.members, self.head + row * RECORD.size, RECORD.size))
        return offset, size, crc

    def name(self, row: int) -> str:
        two = read_at(self.members, self.head + row * RECORD.size, 2 * RECORD.size)
        begin, *end = [record[2] for record in RECORD.iter_unpack(two)]
        return read_at(self.names, begin, max(0, end[0] - begin) if end else -1).decode(errors="surrogateescape")


class ShardNames(Names):
    """Images' names, read from the index when asked for; the order of their rows is that of the shards."""

    def __init__(self, source: Index, rows: Int64[np.ndarray, " n"]) -> None:
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self.source.name(row) for row in self.rows[i].tolist()]
        return self.source.name(int(self.rows[i]))

    def take(self, indices: Int64[np.ndarray, " m"]) -> "ShardNames":
        return ShardNames(self.source, self.rows[indices])

    def checksum(self) -> str:
        """A checksum of the shards' checksums, and of the chosen rows where not all are."""
        content = hashlib.sha256("\0".join(shard.checksum for shard in self.source.shards).encode())
        if len(self.rows) < self.source.images:
            content.update(self.rows.tobytes())
        return content.hexdigest()

    def order(self, seed: int, epoch: int, batch_size: int) -> ShardOrder | None:
        if (self.rows[1:] <= self.rows[:-1]).any():
            return None
        starts = np.searchsorted(self.rows, np.concatenate([[0], self.source.ends]))
        return ShardOrder(starts, seed, epoch, batch_size)


def load_index(text: bytes, locate: Callable[[str, str], Path], where: str) -> Index | None:
    """The index that an index.json describes; None if the file is another program's.

    `locate` gives the path of a file of the index by its name and checksum. Raises StepclrError if it is corrupt.
    """
    ours = text.lstrip()[:1] == b"{" and FORMAT.encode() in text
    try:
        stored = json.loads(text)
        if not isinstance(stored, dict) or not str(stored.get("format")).startswith("stepclr shards"):
            return None
        if stored["format"] != FORMAT:
            raise StepclrError(f"{where} has the format {stored['format']!r}; this version reads {FORMAT!r}")
        shards, files = _shards(stored), stored["files"]
        members, names = (locate(name, str(files[name])) for name in (MEMBERS, NAMES))
        damaged = [(str(name), str(why)) for name, why in stored.get("damaged", [])]
        skipped = [(str(name), str(why)) for name, why in stored.get("skipped", [])]
        classes, ignored = [str(name) for name in stored["classes"]], _ignored(stored.get("ignored", []))
        range_of = stored.get("value_range")
        value_range = (float(range_of[0]), float(range_of[1])) if range_of else None
        reading = Reading(value_range, channels=stored.get("channels"))
        return Index(members, names, shards, classes, damaged, skipped, ignored, reading)
    except StepclrError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        if not ours:
            return None
        why = error if type(error) is ValueError else fault_of(error)  # the former are of this file
        raise StepclrError(f"{where} is corrupt: {why}") from error


def _ignored(stored: Any) -> list[tuple[str, str, str, int]]:
    return [(str(path), str(kind), str(hint), int(count)) for path, kind, hint, count in stored]


def _shards(stored: dict[str, Any]) -> list[Shard]:
    """The shards of an index.json. Raises ValueError for names and checksums that lead out of a folder."""
    shards = [Shard(str(s["name"]), int(s["images"]), int(s["bytes"]), str(s["checksum"])) for s in stored["shards"]]
    for shard in shards:
        if Path(shard.name).name != shard.name or shard.images < 0:
            raise ValueError("a shard's name leads out of the folder, or its count is below 0")
    for text in (*stored["files"].values(), *(shard.checksum for shard in shards)):
        if not CHECKSUM.fullmatch(text):  # files in the cache have checksums as their names
            raise ValueError(f"{text!r} is not a checksum")
    return shards


def write_index(
    folder: Path, parts: Sequence[Callable[[], Part]], facts: Mapping[str, Any], classes: list[str] | None = None
) -> None:
    """Write the index of shards from their parts, loaded one at a time: 10 million images need not fit in memory.

    classes: name the labels of shards that `pack` has made. None: the classes are those of the parts, whose `skipped`
    and `ignored` are written too.
    """
    # A first pass, because the labels of a part can be written only when the classes of all parts are known.
    summaries = [_summary(load()) for load in parts]
    total = sum(part.shard.images for part in summaries)
    labels_of = None
    met: dict[str, Any] = {}
    if classes is None:
        classes, labels_of = _classes(summaries)
        met = {
            "skipped": [each for part in summaries for each in part.skipped],
            "ignored": [each for part in summaries for each in part.ignored],
        }

    with new_file(folder / MEMBERS) as file:
        header = {"descr": np.lib.format.dtype_to_descr(MEMBER), "fortran_order": False, "shape": (total,)}
        np.lib.format.write_array_header_1_0(file, header)
        begin = 0  # of the part's names in names.bin
        for load in parts:
            part = load()
            table = part.members.copy()
            table["name"] += begin
            begin += len(part.names)
            if labels_of is not None:
                table["label"] = labels_of(part)
            file.write(table.tobytes())
    with new_file(folder / NAMES) as file:
        file.writelines(load().names for load in parts)
    content = {
        "format": FORMAT,
        **facts,
        "images": total,
        "classes": classes,
        "files": {name: checksum(folder / name) for name in (MEMBERS, NAMES)},
        **met,
        "shards": [asdict(part.shard) for part in summaries],
    }
    with new_file(folder / INDEX) as file:
        file.write(json.dumps(content, indent=1, default=np.generic.item).encode())


def _summary(part: Part) -> Part:
    """The part without what grows with its images; only the largest label is kept."""
    return replace(part, members=np.array([part.members["label"].max(initial=-1)]), names=b"")


def _classes(summaries: list[Part]) -> tuple[list[str], Callable[[Part], NDArray[np.int64]]]:
    """The names of the classes, and the function that gives a part's labels in them.

    If a part has class numbers, they are the classes, and images of the other parts have no label. Else folders are
    the classes, as in a zip.
    """
    if any(part.classes is None for part in summaries):
        largest = max(int(part.members[0]) for part in summaries if part.classes is None)

        def numbered(part: Part) -> NDArray[np.int64]:
            return part.members["label"] if part.classes is None else np.full(len(part.members), -1)

        return [str(number) for number in range(largest + 1)], numbered

    paths = sorted({name for part in summaries for name in part.classes or []})
    one_top = len({path.split("/")[0] for path in paths}) == 1 and "" not in paths
    class_of = {path: path.split("/")[0] for path in paths}
    if one_top:  # a folder around everything is not a class: the folders in it are
        class_of = {path: path.partition("/")[2].split("/")[0] for path in paths}
    names = sorted(set(class_of.values()) - {""})
    number = {name: label for label, name in enumerate(names)} | {"": -1}

    def by_folder(part: Part) -> NDArray[np.int64]:
        labels = np.array([number[class_of[path]] for path in part.classes or []], np.int64)
        return labels[part.members["label"].astype(np.int64)]

    return names, by_folder
