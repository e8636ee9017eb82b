"""What an index contains, and how it is read from a folder, a .parquet or an .npz."""

import errno
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from stepclr.data.reading import RGB, Range, Reading
from stepclr.errors import StepclrError, fault_of, installed
from stepclr.io import from_json
from stepclr.model.encoder import Encoder
from stepclr.model.files import state_checksum
from stepclr.model.timm_weights import timm_name

METADATA_FILE, TABLE = "index.json", "images"  # in an index's folder: what makes it an index, and its table
METADATA_KEY = b"stepclr"  # the same in a .parquet file
DISK_FULL = os.strerror(errno.ENOSPC)
# What indices of an earlier version do not say.
OLDER: dict[str, Any] = {"channels": RGB, "value_range": None, "max_pixels": None, "damaged_shards": None}
COLUMNS = ("vector", "path", "label", "thumbnail")
ESCAPED = re.compile(r"\\(\\|ud[89a-f][0-9a-f]{2})")


@dataclass(frozen=True)
class IndexMetadata:
    """How the vectors of an index were computed, so that a query is encoded in the same way.

    Attributes:
        checksum: of the encoder and its weights.
        name, size, features: of the encoder.
        precision: of its arithmetic.
        source, classes: of the images; a list where there are several sources.
        run: where the encoder was read from.
        recall: at 10, of the approximate search; None if search is exact, or building the index was interrupted.
        partitioned_rows: how many rows there were when the approximate search was last partitioned into cells.
        channels, value_range: of the images, as the encoder takes them.
        max_pixels, damaged_shards: how else their files were read.
    """

    checksum: str
    name: str
    size: int
    features: int
    precision: str
    source: str | list[str]
    classes: list[str]
    run: str
    recall: float | None = None
    partitioned_rows: int = 0
    channels: int = RGB
    value_range: Range | None = None
    max_pixels: int | None = None
    damaged_shards: str | None = None

    def to_json(self) -> bytes:
        return json.dumps({"format": 1, **asdict(self)}).encode()

    @classmethod
    def from_json(cls, text: bytes, path: Path) -> "IndexMetadata":
        """Raises StepclrError if it is not what `to_json` writes."""
        try:
            stored = json.loads(text)
            if stored["format"] == 1:
                return from_json(cls, OLDER | stored, path)
        except (ValueError, TypeError, KeyError, RecursionError):  # StepclrError is a ValueError too
            pass
        raise StepclrError(f"{path} does not describe an index: it is corrupt or was written by another version")


@dataclass(frozen=True)
class EmbeddingIndex:
    """The representations of many images.

    Attributes:
        vectors: h, float32 `[n, F]`, not normalized.
        paths: of each image, relative to `source`.
        labels: int64 `[n]`, indices into `classes`; -1 where an image has none.
        thumbnails: a small JPEG per image; empty for an .npz, which has none.
        source: what the images were opened from, a list where that is several; "" if unknown.
        channels, value_range: of the images; of an .npz not known, and RGB as each file declares.
        max_pixels, damaged_shards: how else their files were read; of an .npz not known.
    """

    vectors: Float32[np.ndarray, "n features"]
    paths: list[str]
    labels: Int64[np.ndarray, " n"]
    classes: list[str]
    thumbnails: list[bytes]
    source: str | list[str]
    channels: int = RGB
    value_range: Range | None = None
    max_pixels: int | None = None
    damaged_shards: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def reading(self) -> Reading:
        """How the files of the images were read, but for what an encoder knows."""
        return Reading(max_pixels=self.max_pixels, damaged_shards=self.damaged_shards)

    def class_name(self, index: int) -> str | None:
        """The class of an image; None if it has no label."""
        label = int(self.labels[index])
        return self.classes[label] if label >= 0 else None


def open_index(index: str | os.PathLike[str] | EmbeddingIndex) -> EmbeddingIndex:
    """All that `stepclr embed` wrote to a folder, a .parquet or an .npz, sorted by path, folder by folder.

    An index that is open already is returned as it is. Raises StepclrError if there is none, or it is corrupt or empty.
    """
    if isinstance(index, EmbeddingIndex):
        return index
    where = Path(index)
    metadata = read_metadata(where)
    stored = _read_npz(where) if metadata is None else _read_table(where, metadata)
    if not len(stored):
        raise StepclrError(f"{where} contains no image yet: run stepclr embed again to finish it")
    order = sorted(range(len(stored)), key=lambda i: stored.paths[i].split("/"))
    return replace(
        stored,
        vectors=stored.vectors[order],
        paths=[stored.paths[i] for i in order],
        labels=stored.labels[order],
        thumbnails=[stored.thumbnails[i] for i in order] if stored.thumbnails else [],
    )


def read_metadata(where: Path) -> IndexMetadata | None:
    """How the vectors of an index were computed; None for an .npz, which does not record it.

    Raises StepclrError if there is no index.
    """
    if where.is_dir():
        file = where / METADATA_FILE
        if not file.is_file():
            raise StepclrError(f"{where} is not an index; stepclr embed RUN SOURCE --out index/ makes one")
        with reading(file):
            text = file.read_bytes()
        return IndexMetadata.from_json(text, file)
    if timm_name(where) is not None or where.suffix == ".safetensors":
        raise StepclrError(f"{where} is an encoder, not an index; stepclr embed {where} SOURCE --out index/ makes one")
    if not where.is_file():
        raise StepclrError(f"{where} does not exist; stepclr embed RUN SOURCE --out {where} makes it")
    if where.suffix == ".npz":
        return None
    if where.suffix != ".parquet":
        raise StepclrError(f"{where} is not an index: a folder, a .parquet or an .npz written by stepclr embed")
    parquet = needed("pyarrow.parquet")
    with reading(where):
        stored = parquet.read_schema(where).metadata or {}
    return IndexMetadata.from_json(stored.get(METADATA_KEY, b""), where)


def open_table(folder: Path) -> tuple[IndexMetadata, Any]:
    """How a folder's vectors were computed, and its LanceDB table."""
    metadata = read_metadata(folder)
    assert metadata is not None
    lancedb = needed("lancedb")
    with reading(folder):
        table = lancedb.connect(folder).open_table(TABLE)
        if table.schema.field("vector").type.list_size != metadata.features:
            raise ValueError(f"its vectors do not have {metadata.features} numbers each")
        return metadata, table


def encoder_checksum(encoder: Encoder) -> str:
    """A checksum of everything in an encoder that h depends on: its network and its weights."""
    weights = state_checksum(encoder.state_dict())
    parts: list[Any] = [encoder.name, encoder.stem, encoder.size, encoder.normalize_h, weights]
    if encoder.value_range:
        parts.append(encoder.value_range)
    if encoder.channels != RGB:
        parts.append(encoder.channels)
    if encoder.weights:
        parts.append(encoder.resizing)
    elif encoder.test_size != encoder.size:
        parts.append(encoder.test_size)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def vectors_of(chunks: Sequence[Any], features: int, where: Path) -> Float32[np.ndarray, "n features"]:
    """Arrow arrays of vectors as one array; StepclrError if a vector is missing or has another length."""
    with reading(where):
        n = sum(len(chunk) for chunk in chunks)
        flat = np.concatenate([np.empty(0, np.float32), *(chunk.flatten().to_numpy() for chunk in chunks)])
        if flat.dtype != np.float32 or flat.size != n * features:
            raise ValueError(f"its vectors do not have {features} numbers each")
        return flat.reshape(n, features)


def as_text(name: str) -> str:
    """A file name as valid text: bytes that are not valid become escapes, which `from_text` undoes."""
    return name.replace("\\", "\\\\").encode(errors="backslashreplace").decode()


def from_text(text: str) -> str:
    """The inverse of `as_text`."""

    def character(escape: re.Match[str]) -> str:
        if escape[1] == "\\":
            return "\\"
        return chr(int(escape[1].removeprefix("u"), 16))

    return ESCAPED.sub(character, text)


def needed(package: str) -> ModuleType:
    """A package that only an index needs; StepclrError if it is not installed."""
    os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are meant for programmers
    return installed(package, "search", "an index")


@contextmanager
def reading(where: Path) -> Iterator[None]:
    """Turn whatever LanceDB, Arrow or NumPy raise on a corrupt file into one line; some raise a Rust panic."""
    try:
        yield
    except (StepclrError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        if DISK_FULL in str(error):  # LanceDB reports a full disk in words only
            raise OSError(errno.ENOSPC, DISK_FULL, os.fspath(where)) from error
        raise StepclrError(f"{where} cannot be read: {fault_of(error)}") from error


def _read_table(where: Path, metadata: IndexMetadata) -> EmbeddingIndex:
    if where.is_dir():
        query = open_table(where)[1].search().select(list(COLUMNS))
        with reading(where):
            table = query.to_arrow()
    else:
        with reading(where):
            table = needed("pyarrow.parquet").read_table(where, columns=list(COLUMNS))
    with reading(where):
        names = [None if label is None else from_text(label) for label in table["label"].to_pylist()]
        # The source's own classes keep their numbers; images embedded earlier may have others.
        classes = list(dict.fromkeys([*metadata.classes, *sorted({name for name in names if name is not None})]))
        label_of: Mapping[str | None, int] = {None: -1} | {name: label for label, name in enumerate(classes)}
        return EmbeddingIndex(
            vectors_of(table["vector"].chunks, metadata.features, where),
            [from_text(path) for path in table["path"].to_pylist()],
            np.array([label_of[name] for name in names], np.int64),
            classes,
            [content or b"" for content in table["thumbnail"].to_pylist()],
            metadata.source,
            metadata.channels,
            metadata.value_range,
            metadata.max_pixels,
            metadata.damaged_shards,
        )


def _read_npz(where: Path) -> EmbeddingIndex:
    with reading(where):
        try:
            with where.open("rb") as content, np.load(content, allow_pickle=False) as file:
                vectors, paths, labels, classes = (file[name] for name in ("embeddings", "paths", "labels", "classes"))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise StepclrError(f"{where} is not an .npz written by stepclr embed: {fault_of(error)}") from error
        same_length = vectors.ndim == 2 and paths.shape == labels.shape == (len(vectors),)
        kinds = paths.dtype.kind, labels.dtype.kind, classes.dtype.kind
        if not same_length or kinds not in (("U", "i", "U"), ("U", "u", "U")):
            raise StepclrError(f"{where} is not an .npz written by stepclr embed: its arrays do not match each other")
        vectors, labels = vectors.astype(np.float32), labels.astype(np.int64)
        if not -1 <= labels.min(initial=-1) <= labels.max(initial=-1) < len(classes):
            raise StepclrError(
                f"{where} has labels that are not -1 for none, or the places of its {len(classes)} classes"
            )
        if not np.isfinite(vectors).all():  # `stepclr.embed` has a row of NaN for an image that cannot be read
            raise StepclrError(f"{where} has embeddings that are not finite numbers: leave out these images")
        return EmbeddingIndex(vectors, paths.tolist(), labels, classes.tolist(), [], "")
