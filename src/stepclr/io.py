"""Files: where caches lie, how a file appears whole or not at all, locks, checksums, and JSON that must fit a type."""

import csv
import hashlib
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedWriter
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from stepclr.errors import StepclrError, check_suffix, installed, one_line

Record = TypeVar("Record")
TABLES = (".csv", ".parquet", ".json")  # what a table can be written as
ABANDONED = 86_400  # s; a temporary file this old was left by a process that was killed


def user_folder(variable: str, name: str) -> Path:
    """The folder that the environment variable names, by default `name` in the user's cache folder for stepclr."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = expanded(os.environ.get(variable) or f"{home}/stepclr/{name}")
    if str(folder).startswith("~"):
        raise StepclrError(f"there is no home folder for {folder}; set HOME, or {variable} to a folder")
    return folder


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with the home folder for its `~`; a name that begins with one and is no user's stays as it is."""
    return Path(os.path.expanduser(path))


@contextmanager
def new_file(path: Path) -> Iterator[BufferedWriter]:
    """A file to write that every process sees whole or not at all.

    It is written next to its place, flushed to the disk, then renamed; after an error nothing of it is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with named(path, temporary), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)  # the rename itself has to reach the disk too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(path: Path, write: Callable[[BufferedWriter], object]) -> None:
    """Write a file, by `write(file)`, that every process sees whole or not at all."""
    with new_file(path) as file:
        write(file)


def in_order(content: bytes) -> bytes:
    """The bytes of a .safetensors file with its metadata in alphabetical order; safetensors writes them in any."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors behind it stay aligned
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def from_json(kind: type[Record], values: object, where: str | Path) -> Record:
    """The dataclass `kind` out of a JSON object read at `where`; further fields of the object are ignored.

    JSON has lists only: where a field takes a tuple, a list becomes one. Raises StepclrError that names the first field
    that is missing or of another type.
    """
    if not isinstance(values, dict):
        raise StepclrError(f"{where} is corrupt: it is not a JSON object")
    read = {}
    for name, expected in get_type_hints(kind).items():
        if name not in values:
            raise StepclrError(f"{where} is corrupt: it has no {name!r}")
        value = values[name]
        if isinstance(value, list) and _takes_tuples(expected):
            value = tuple(value)
        if not _is_of(value, expected):
            raise StepclrError(f"{where} is corrupt: {name} is {values[name]!r}")
        read[name] = value
    return kind(**read)


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Raise StepclrError, which begins with `where`, unless a JSON value has this shape.

    A dict is an object with these fields: the name of one that may be missing or null ends with "?", "*" stands for
    every name, and further fields are ignored. A list is a list of any length of its one item, a tuple a list of just
    these items, and anything else a type.
    """
    if isinstance(shape, dict) and isinstance(value, dict):
        for name, of_field in shape.items():
            key = name.removesuffix("?")
            for each in value if name == "*" else [key]:
                if each in value and (value[each] is not None or key == name):
                    check_shape(value[each], of_field, f"{where} {each}:")
                elif key == name:
                    raise StepclrError(f"{where} it has no {key!r}")
    elif isinstance(shape, list) and isinstance(value, list):
        for item in value:
            check_shape(item, shape[0], where)
    elif isinstance(shape, tuple) and isinstance(value, list) and len(value) == len(shape):
        for item, of_item in zip(value, shape, strict=True):
            check_shape(item, of_item, where)
    elif isinstance(shape, dict | list | tuple) or not _is_of(value, shape):
        raise StepclrError(f"{where} it is {value!r}")


def plain(value: Any) -> object:
    """A value as `from_json` gives it back: a number of numpy or torch is one of Python, and a list a tuple."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if getattr(value, "ndim", None) == 0:
        return value.item()
    if isinstance(value, int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _is_of(value: Any, expected: Any) -> bool:
    """Whether a JSON value is of this type, and so is each of its items; true and false are no numbers here."""
    # Its import takes a third of the time of --help, which reads no JSON.
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    try:
        check_type(value, expected, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError:
        return False
    items = value if isinstance(value, list | tuple) else [value]
    return bool in (expected, *get_args(expected)) or not any(isinstance(item, bool) for item in items)


def _takes_tuples(expected: Any) -> bool:
    """Whether a type is a tuple, or a union with one."""
    return any(get_origin(one) is tuple for one in (expected, *get_args(expected)))


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all; names in it can be read back exactly, whatever characters they contain."""
    text = io.StringIO()
    # A file's name may contain a lone carriage return, which Python quotes only where lines end as its csv ends them.
    # It need not be text either: bytes that cannot be decoded are written unchanged.
    csv.writer(text).writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode(errors="surrogateescape")))


def check_table(path: Path) -> None:
    """Raise StepclrError unless `write_table` can write this file here; to be called before the long part."""
    check_suffix(path, TABLES)
    if path.suffix == ".parquet":
        installed("pyarrow.parquet", "search", f"writing {path.name}")


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table as CSV, Parquet or JSON (a list with an object for each row), as the suffix says.

    Bytes in names that are not text are escapes in Parquet and JSON.
    """
    check_table(path)
    if path.suffix == ".csv":
        write_csv(path, [header, *rows])
    elif path.suffix == ".json":
        records = [dict(zip(header, row, strict=True)) for row in rows]
        write_whole(path, lambda file: file.write(json.dumps(records, indent=1).encode()))
    else:
        arrow, parquet = (installed(name, "search", f"writing {path.name}") for name in ("pyarrow", "pyarrow.parquet"))
        columns = [[_as_text(row[place]) for row in rows] for place in range(len(header))]
        table = arrow.table(columns, names=[_as_text(name) for name in header])
        write_whole(path, lambda file: parquet.write_table(table, file))


def _as_text(value: object) -> object:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


@contextmanager
def named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """A context that names this file in errors of the system which name none (a full disk), or its temporary file."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, os.fspath(temporary or path)):
            error.filename = os.fspath(path)
        raise


def check_writable(path: Path) -> None:
    """Raise StepclrError unless this file or folder can be written; to be called before the long part."""
    folder = path if path.is_dir() else path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent  # the others are made
    if not folder.is_dir():
        raise StepclrError(f"{path} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise StepclrError(f"{path} cannot be written: {folder} is read-only, or belongs to another user")


def check_same_table(path: Path, header: Sequence[str]) -> None:
    """Raise StepclrError where a CSV file, about to be overwritten, is another table: its columns do not begin so."""
    if path.suffix != ".csv" or not path.is_file():
        return
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        found = next(csv.reader(file), None)
    if found and found[: len(header)] != list(header):
        columns = ", ".join(map(one_line, found[:5]))
        raise StepclrError(f"{path} is another table, with the columns {columns}; choose another --out, or delete it")


def temporary_files(folder: Path) -> list[Path]:
    """The temporary files in a folder: those being written now, and those of processes that were killed."""
    return list(folder.glob(".*.tmp"))


def _abandoned(temporary: Path) -> bool:
    return temporary.stat().st_mtime < time.time() - ABANDONED


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """A context that locks a folder against other processes; however this process ends, the lock is released.

    Temporary files of processes that were killed are deleted.

    Raises StepclrError, with the message `busy`, if another process holds the lock. Where the system has no such
    locks, there is no protection.
    """
    with _locked(folder, busy):
        for temporary in temporary_files(folder):
            if not temporary.is_dir():
                temporary.unlink()
            elif _abandoned(temporary):  # the draft of an export, which another process may be writing
                shutil.rmtree(temporary)
        yield


@contextmanager
def _locked(folder: Path, busy: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StepclrError(busy) from None
        yield
    finally:
        os.close(handle)


@contextmanager
def published(path: Path) -> Iterator[BufferedWriter]:
    """`new_file` in a cache folder: deletes abandoned temporary files there, and reports errors in one line."""
    try:
        for temporary in temporary_files(path.parent):
            with suppress(FileNotFoundError):  # another process deleted it first
                if _abandoned(temporary) and not temporary.is_dir():
                    temporary.unlink()
        with new_file(path) as file:
            yield file
    except OSError as error:
        why = error.strerror or error
        raise StepclrError(f"cannot write in {path.parent}: {why}; STEPCLR_CACHE may name another folder") from error


def blake(content: bytes = b"") -> "hashlib.blake2b":
    """A hash of the kind that all checksums of files are, of these bytes and those that `update` adds."""
    return hashlib.blake2b(content, digest_size=16)


def checksum_of(content: bytes) -> str:
    """The checksum of these bytes."""
    return blake(content).hexdigest()


def checksum(path: Path) -> str | None:
    """The checksum of a file's bytes; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, blake).hexdigest()
    except OSError:
        return None
