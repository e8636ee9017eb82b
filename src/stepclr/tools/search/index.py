"""What an index holds, and how it is read back from a folder, a .parquet or an .npz."""

import errno
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from stepclr.errors import StepclrError, installed
from stepclr.model.encoder import Encoder
from stepclr.model.files import state_checksum

FOLDER_FILE, TABLE = "index.json", "images"  # in an index's folder: what makes it one, and the table
KEY = b"stepclr"  # of a .parquet's metadata, for the same
FULL = os.strerror(errno.ENOSPC)
COLUMNS = ("vector", "path", "label", "thumbnail")
ESCAPED = re.compile(r"\\(\\|ud[89a-f][0-9a-f]{2})")


@dataclass(frozen=True)
class Made:
    """How the vectors of an index were made, so that a query goes the same way.

    checksum: of the encoder's weights. name, size, features: the encoder's. precision: its arithmetic. source, classes:
    the images'. run: where the encoder was found. recall: at 10, of the approximate search; None where it is exact,
    or was not finished. laid_out: of how many rows the cells of that were made.
    """

    checksum: str
    name: str
    size: int
    features: int
    precision: str
    source: str
    classes: list[str]
    run: str
    recall: float | None = None
    laid_out: int = 0

    def to_json(self) -> bytes:
        return json.dumps({"format": 1, **asdict(self)}).encode()

    @classmethod
    def from_json(cls, text: bytes, where: Path) -> "Made":
        """Raises StepclrError where it is not what `to_json` writes."""
        try:
            fields = json.loads(text)
            format, classes, recall = fields.pop("format"), fields["classes"], fields["recall"]
            texts = [fields[name] for name in ("checksum", "name", "precision", "source", "run")] + list(classes)
            whole = all(type(fields[name]) is int and fields[name] >= 0 for name in ("size", "features", "laid_out"))
            if all(isinstance(part, str) for part in texts) and whole and isinstance(recall, float | None):
                made = cls(**fields)
                if format == 1 and isinstance(classes, list):
                    return made
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        raise StepclrError(f"{where} does not say how its vectors were made: it is damaged, or of another version")


@dataclass(frozen=True)
class Index:
    """The representations of many images.

    Attributes:
        vectors: h, float32 `[n, F]`, not normalized.
        paths: of each image, relative to `source`.
        labels: int64 `[n]`, indices into `classes`; -1 where an image has none.
        thumbnails: of each image a small JPEG; empty of an .npz, which has none.
        source: what the images were opened from; "" where it is not known.
    """

    vectors: Float32[np.ndarray, "n features"]
    paths: list[str]
    labels: Int64[np.ndarray, " n"]
    classes: list[str]
    thumbnails: list[bytes]
    source: str

    def __len__(self) -> int:
        return len(self.paths)


def open_index(path: str | os.PathLike[str]) -> Index:
    """All that `stepclr embed` wrote to `path`: a folder, a .parquet or an .npz, in the order of the paths' parts.

    Raises StepclrError where there is none, it is damaged, or holds no image.
    """
    where = Path(path)
    made = made_of(where)
    index = _read_npz(where) if made is None else _read_table(where, made)
    if not len(index):
        raise StepclrError(f"{where} holds no image yet: let stepclr embed finish")
    order = sorted(range(len(index)), key=lambda i: index.paths[i].split("/"))
    return Index(
        index.vectors[order],
        [index.paths[i] for i in order],
        index.labels[order],
        index.classes,
        [index.thumbnails[i] for i in order] if index.thumbnails else [],
        index.source,
    )


def made_of(where: Path) -> Made | None:
    """How the vectors of an index were made; None of an .npz, which does not say.

    Raises StepclrError where there is no index.
    """
    if where.is_dir():
        file = where / FOLDER_FILE
        if not file.is_file():
            raise StepclrError(f"{where} is no index of stepclr; stepclr embed RUN SOURCE --out index/ makes one")
        with reading(file):
            text = file.read_bytes()
        return Made.from_json(text, file)
    if not where.is_file():
        raise StepclrError(f"{where} does not exist; stepclr embed RUN SOURCE --out {where} makes it")
    if where.suffix == ".npz":
        return None
    if where.suffix != ".parquet":
        raise StepclrError(f"{where} is no index: a folder, a .parquet or an .npz that stepclr embed wrote")
    parquet = needed("pyarrow.parquet")
    with reading(where):
        metadata = parquet.read_schema(where).metadata or {}
    return Made.from_json(metadata.get(KEY, b""), where)


def open_table(folder: Path) -> tuple[Made, Any]:
    """How a folder's vectors were made, and its LanceDB table."""
    made = made_of(folder)
    assert made is not None
    lancedb = needed("lancedb")
    with reading(folder):
        table = lancedb.connect(folder).open_table(TABLE)
        if table.schema.field("vector").type.list_size != made.features:
            raise ValueError(f"its vectors are not of {made.features} numbers each")
        return made, table


def checksum_of(encoder: Encoder) -> str:
    """A hash of all that decides about h: an encoder's network and weights."""
    decides = [encoder.name, encoder.stem, encoder.size, encoder.normalize_h, state_checksum(encoder.state_dict())]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def vectors_of(chunks: Sequence[Any], features: int, where: Path) -> Float32[np.ndarray, "n features"]:
    """Arrow arrays of vectors as one; StepclrError where a vector is missing or has another length."""
    with reading(where):
        n = sum(len(chunk) for chunk in chunks)
        flat = np.concatenate([np.empty(0, np.float32), *(chunk.flatten().to_numpy() for chunk in chunks)])
        if flat.dtype != np.float32 or flat.size != n * features:
            raise ValueError(f"its vectors are not of {features} numbers each")
        return flat.reshape(n, features)


def as_text(name: str) -> str:
    """A name as valid text: a file's name may hold bytes that are none, which become escapes; `from_text` undoes it."""
    return name.replace("\\", "\\\\").encode(errors="backslashreplace").decode()


def from_text(text: str) -> str:
    return ESCAPED.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), text)


def needed(package: str) -> ModuleType:
    """A package that only an index needs; StepclrError where it is not installed."""
    os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are to programrs
    return installed(package, "search", "an index")


@contextmanager
def reading(where: Path) -> Iterator[None]:
    """Whatever LanceDB, Arrow or NumPy raise on a damaged file becomes one line; some end in a panic of Rust's."""
    try:
        yield
    except (StepclrError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        if FULL in str(error):  # which LanceDB tells in words only
            raise OSError(errno.ENOSPC, FULL, os.fspath(where)) from error
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise StepclrError(f"{where} cannot be read: {why}") from error


def _read_table(where: Path, made: Made) -> Index:
    if where.is_dir():
        found = open_table(where)[1].search().select(list(COLUMNS))
        with reading(where):
            table = found.to_arrow()
    else:
        with reading(where):
            table = needed("pyarrow.parquet").read_table(where, columns=list(COLUMNS))
    with reading(where):
        names = [None if label is None else from_text(label) for label in table["label"].to_pylist()]
        classes = list(dict.fromkeys([*made.classes, *sorted({name for name in names if name is not None})]))
        numbers: Mapping[str | None, int] = {None: -1} | {name: label for label, name in enumerate(classes)}
        return Index(
            vectors_of(table["vector"].chunks, made.features, where),
            [from_text(path) for path in table["path"].to_pylist()],
            np.array([numbers[name] for name in names], np.int64),
            classes,
            [content or b"" for content in table["thumbnail"].to_pylist()],
            made.source,
        )


def _read_npz(where: Path) -> Index:
    with reading(where):
        try:
            with where.open("rb") as content, np.load(content, allow_pickle=False) as file:
                vectors, paths, labels, classes = (file[name] for name in ("embeddings", "paths", "labels", "classes"))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise StepclrError(f"{where} is no .npz of stepclr embed: {error}") from error
        texts: Iterable[np.ndarray] = (paths, classes)
        if (
            vectors.ndim != 2
            or not len(vectors) == len(paths) == len(labels)
            or any(t.dtype.kind != "U" for t in texts)
        ):
            raise StepclrError(f"{where} is no .npz of stepclr embed: its arrays do not fit each other")
        return Index(vectors.astype(np.float32), paths.tolist(), labels.astype(np.int64), classes.tolist(), [], "")
