"""What lies where in shards: an index of 40 bytes an image, read where it is needed and held nowhere.

    index.json     the shards with their counts, sizes and checksums; the classes; how the images were treated
    members.npy    `MEMBER` an image, shard after shard
    names.bin      the images' names, end to end

`stepclr pack` writes it beside its shards; of shards from elsewhere it is made by one pass over each, in the cache.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import BufferedWriter
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from stepclr.errors import StepclrError
from stepclr.io import checksum, write_whole

FORMAT = "stepclr shards 1"
INDEX, MEMBERS, NAMES = "index.json", "members.npy", "names.bin"
PLAN = "packing.json"  # what is being packed, until the index is there
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
    """`size` bytes of a file, or as many as there are; -1: all to its end."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(size)


@dataclass(frozen=True)
class Shard:
    """One shard as index.json tells of it."""

    name: str
    images: int
    bytes: int
    checksum: str


@dataclass(eq=False)
class Part:
    """What one shard holds, on its way into the index."""

    shard: Shard
    members: NDArray[Any]
    names: bytes
    classes: list[str] | None = None
    """The folders that labels count, at most two deep; None: labels are class numbers."""
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        facts = {**asdict(self.shard), "classes": self.classes, "skipped": self.skipped}
        content = b"\n".join([json.dumps(facts).encode(), self.members.tobytes() + self.names])
        write_whole(path, lambda file: file.write(hashlib.blake2b(content).digest() + content))

    @staticmethod
    def read(path: Path) -> "Part | None":
        """The part that was written there; None where there is none, or it has rotted."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.blake2b(content[64:]).digest() != content[:64]:
            return None
        header, _, rest = content[64:].partition(b"\n")
        facts = json.loads(header)
        classes, skipped = facts.pop("classes"), [(name, why) for name, why in facts.pop("skipped")]
        shard = Shard(**facts)
        end = shard.images * MEMBER.itemsize
        return Part(shard, np.frombuffer(rest[:end], MEMBER), rest[end:], classes, skipped)


@dataclass(eq=False)
class Index:
    """An index whose files are `members` and `names`."""

    members: Path
    names: Path
    shards: list[Shard]
    classes: list[str]
    damaged: list[tuple[str, str]]
    """(shard, what is wrong with it) of those that could not be looked through."""
    skipped: list[tuple[str, str]]

    def __post_init__(self) -> None:
        table = self.table()
        if table.dtype != MEMBER or table.shape != (self.images,):
            raise ValueError(f"{MEMBERS} does not have {self.images} images")
        self.head = int(getattr(table, "offset", 0))

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    def table(self) -> NDArray[Any]:
        """All members, mapped for as long as the caller holds them."""
        found: NDArray[Any] = np.load(self.members, mmap_mode="r" if self.images else None, allow_pickle=False)
        return found

    def place(self, row: int) -> tuple[int, int, int]:
        """(offset, size, crc) of an image's bytes in its shard."""
        offset, _, _, size, _, _, crc = RECORD.unpack(read_at(self.members, self.head + row * RECORD.size, RECORD.size))
        return offset, size, crc

    def name(self, row: int) -> str:
        two = read_at(self.members, self.head + row * RECORD.size, 2 * RECORD.size)
        begin, *end = [record[2] for record in RECORD.iter_unpack(two)]
        return read_at(self.names, begin, max(0, end[0] - begin) if end else -1).decode(errors="surrogateescape")


class Names(Sequence[str]):
    """Images' names, read from the index when asked for."""

    def __init__(self, source: Index, rows: Int64[np.ndarray, " n"]) -> None:
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self.source.name(row) for row in self.rows[at].tolist()]
        return self.source.name(int(self.rows[at]))

    def take(self, at: Int64[np.ndarray, " m"]) -> "Names":
        return Names(self.source, self.rows[at])

    def digest(self) -> str:
        """A hash that stands for the names: of the shards' checksums, and of which images are chosen."""
        found = hashlib.sha256("\0".join(shard.checksum for shard in self.source.shards).encode())
        if len(self.rows) < self.source.images:
            found.update(self.rows.tobytes())
        return found.hexdigest()


def load_index(text: bytes, locate: Callable[[str, str], Path], where: str) -> Index | None:
    """The index that an index.json tells of; None if it is some other program's.

    `locate` gives the path of a file of the index by its name and checksum. Raises StepclrError if it is damaged.
    """
    try:
        stored = json.loads(text)
        if not isinstance(stored, dict) or not str(stored.get("format")).startswith("stepclr shards"):
            return None
        if stored["format"] != FORMAT:
            raise StepclrError(f"{where} has the format {stored['format']!r}; this version reads {FORMAT!r}")
        shards = [
            Shard(str(s["name"]), int(s["images"]), int(s["bytes"]), str(s["checksum"])) for s in stored["shards"]
        ]
        if any(Path(shard.name).name != shard.name or shard.images < 0 for shard in shards):
            raise ValueError("a shard's name leads out of the folder, or its count is below 0")
        if not all(CHECKSUM.fullmatch(text) for text in (*stored["files"].values(), *(s.checksum for s in shards))):
            raise ValueError("a checksum is none")  # and would lead out of the cache, whose files have it as a name
        members, names = (locate(name, str(stored["files"][name])) for name in (MEMBERS, NAMES))
        pairs = [[(str(name), str(why)) for name, why in stored.get(key, [])] for key in ("damaged", "skipped")]
        return Index(members, names, shards, [str(name) for name in stored["classes"]], *pairs)
    except StepclrError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        if text.lstrip()[:1] != b"{" or FORMAT.encode() not in text:
            return None
        raise StepclrError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def write_index(
    folder: Path,
    parts: Sequence[Callable[[], Part]],
    facts: Mapping[str, Any],
    classes: list[str] | None = None,
) -> None:
    """Write the index of shards from what each holds, one at a time: 10 million images need not fit in memory.

    `classes` name the labels of shards that `pack` has made; None: those of the parts count, and so do their `skipped`.
    """
    told = [_light(load()) for load in parts]
    named, numbers = _classes(told) if classes is None else (classes, None)
    total = sum(part.shard.images for part in told)

    def members() -> Iterator[bytes]:
        base = 0
        for load in parts:
            part = load()
            table = part.members.copy()
            table["name"] += base
            base += len(part.names)
            if numbers is not None:
                table["label"] = numbers(part)
            yield table.tobytes()

    def write_members(file: BufferedWriter) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(MEMBER), "fortran_order": False, "shape": (total,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.writelines(members())

    write_whole(folder / MEMBERS, write_members)
    write_whole(folder / NAMES, lambda file: file.writelines(load().names for load in parts))
    content = {
        "format": FORMAT,
        **facts,
        "images": total,
        "classes": named,
        "files": {name: checksum(folder / name) for name in (MEMBERS, NAMES)},
        **({"skipped": [pair for part in told for pair in part.skipped]} if classes is None else {}),
        "shards": [asdict(part.shard) for part in told],
    }
    write_whole(folder / INDEX, lambda file: file.write(json.dumps(content, indent=1).encode()))


def _light(part: Part) -> Part:
    """The part without what grows with its images; of the labels the largest stays."""
    return replace(part, members=np.array([part.members["label"].max(initial=-1)]), names=b"")


def _classes(told: list[Part]) -> tuple[list[str], Callable[[Part], NDArray[np.int64]]]:
    """Class names, and each part's labels in them. Class numbers anywhere count; else it is folders, as in a zip."""
    if any(part.classes is None for part in told):
        most = max(int(part.members[0]) for part in told if part.classes is None)
        none = np.int64(-1)
        return [
            str(number) for number in range(most + 1)
        ], lambda part: part.members["label"] if part.classes is None else np.full(len(part.members), none)
    paths = sorted({name for part in told for name in part.classes or []})
    one_top = len({path.split("/")[0] for path in paths}) == 1 and "" not in paths
    class_of = {path: (path.split("/")[one_top:] or [""])[0] for path in paths}
    names = sorted(set(class_of.values()) - {""})
    number = {name: label for label, name in enumerate(names)} | {"": -1}

    def labels(part: Part) -> NDArray[np.int64]:
        own = np.array([number[class_of[path]] for path in part.classes or []], np.int64)
        return own[part.members["label"].astype(np.int64)]

    return names, labels
