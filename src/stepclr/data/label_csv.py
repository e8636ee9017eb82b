"""Labels in tables: the class of each image, by its path, as spreadsheets and other programs write it.

A table has columns for the path and the label, which are found by their usual names, and may have a column `split`.
"""

import csv
import io
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stepclr.errors import StepclrError, fault_of, installed
from stepclr.io import expanded

DELIMITERS = ",;\t"
PATH_COLUMNS = ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "img")
LABEL_COLUMNS = ("label", "class", "classname", "category")
SPLIT_COLUMNS = ("split",)
SPLIT_OF = {"train": "train", "training": "train"} | dict.fromkeys(("test", "val", "valid", "validation"), "test")
MISSING = ("NoneType", "NAType", "NaTType")  # types of values that stand for no value
EXAMPLES = 3


class Row(NamedTuple):
    """What a table says of one image; "" where it says nothing. `line` is 0 where there are no lines."""

    path: str
    label: str
    split: str = ""
    line: int = 0


@dataclass(frozen=True)
class LabelTable:
    """A table as it was read: its rows, and the folder that its paths may be relative to."""

    name: str
    folder: Path
    rows: list[Row]
    has_splits: bool = False

    def place(self, row: Row) -> str:
        """Where a row is, in words."""
        return f"{self.name}, line {row.line}" if row.line else self.name


class Section(NamedTuple):
    """Images that lie together: of these names, whose indices begin at `start`, in the folder `root` if in any."""

    names: Sequence[str]
    start: int = 0
    root: str | None = None


@dataclass
class Labels:
    """What tables say of images, by the images' indices."""

    rows: dict[int, Row] = field(default_factory=dict)
    """The label and the split that all tables together give to each image."""
    labeled: dict[str, list[int]] = field(default_factory=dict)
    """The images that each table was the first to give a label."""
    missing: list[str] = field(default_factory=list)
    """Paths in the tables that are no images."""
    paths: int = 0
    """How many paths the tables have."""
    has_splits: bool = False


def read_labels(tables: object, sections: Sequence[Section], where: str, known: Sequence[Section] = ()) -> Labels:
    """The labels in tables, by the images' indices; an empty label says nothing.

    Args:
        tables: the path of a table (.csv, .tsv, .parquet), several paths, a mapping from paths to labels, or a data
            frame of pandas, polars or pyarrow.
        sections: the images. A path in a table is a name in a section, or it is absolute or relative to the table's
            folder. Accents, slashes and a leading `./` may differ, and so may one folder around all names.
        where: what has these images, for errors.
        known: files that are in the source and not among its images; their rows say nothing.

    Raises StepclrError for a table that cannot be read, and for images with two labels or in two splits.
    """
    finder, no_images = _Finder(sections), _Finder(known)
    labels = Labels()
    conflicts: dict[str, list[str]] = {"labels": [], "splits": []}
    for table in read_tables(tables):
        labels.has_splits = labels.has_splits or table.has_splits
        labels.labeled.setdefault(table.name, [])
        labels.paths += len(table.rows)
        for row in table.rows:
            named = finder.find(row.path, table.folder)
            if len(named) > 1:
                raise StepclrError(f"{table.place(row)}: {where} has several images that could be {row.path!r}")
            if named:
                _enter(labels, named[0], row, table, conflicts)
            elif not no_images.find(row.path, table.folder):
                labels.missing.append(row.path)
    for kind, images in conflicts.items():
        if images:
            has = "1 image has" if len(images) == 1 else f"{len(images):,} images have"
            raise StepclrError(f"{has} two {kind}, such as {'; '.join(images[:EXAMPLES])}")
    return labels


def _enter(labels: Labels, image: int, row: Row, table: LabelTable, conflicts: dict[str, list[str]]) -> None:
    """Enter what a row says of an image, beside what other rows have said."""
    before = labels.rows.get(image, Row(row.path, ""))
    for kind, given, earlier in (("labels", row.label, before.label), ("splits", row.split, before.split)):
        if given and earlier and given != earlier:
            conflicts[kind].append(f"{row.path!r}: {earlier!r} and {given!r} ({table.place(row)})")
    if row.label and not before.label:
        labels.labeled[table.name].append(image)
    labels.rows[image] = Row(row.path, before.label or row.label, before.split or row.split)


def check_found(labels: Labels, where: str) -> None:
    """Raise StepclrError where tables have paths that are no images of `where`."""
    if labels.missing:
        raise StepclrError(f"{', '.join(labels.labeled)}: {missing_words(labels, where)}")


def missing_words(labels: Labels, where: str) -> str:
    """How many paths in tables are no images, with examples."""
    examples = ", ".join(repr(path) for path in labels.missing[:EXAMPLES])
    return f"{len(labels.missing):,} of {labels.paths:,} paths are not in {where}, such as {examples}"


def read_tables(tables: object) -> list[LabelTable]:
    """The tables of a path, of several paths, in a mapping from paths to labels, or in a data frame."""
    if isinstance(tables, str | os.PathLike):
        return [_read_file(Path(tables))]
    if columns := _columns_of_frame(tables):
        return [_table("the data frame", Path(), columns, zip(*columns.values(), strict=True))]
    if isinstance(tables, Mapping):
        if others := [key for key in tables if not isinstance(key, str | os.PathLike)]:
            raise StepclrError(f"labels: the keys of the mapping must be paths, not {others[0]!r}")
        return [LabelTable("the mapping", Path(), [Row(os.fspath(path), _cell(of)) for path, of in tables.items()])]
    files = list(tables) if isinstance(tables, Iterable) else []
    if not files or not all(isinstance(file, str | os.PathLike) for file in files):
        raise StepclrError(
            f"labels must be the path of a table, several paths, a mapping from paths to labels or a data frame, not "
            f"{type(tables).__name__}"
        )
    return [_read_file(Path(file)) for file in files]


def _read_file(file: Path) -> LabelTable:
    file = expanded(file)
    if file.suffix.lower() != ".parquet":
        return _read_text(file)
    parquet = installed("pyarrow.parquet", "search", "reading labels from a .parquet")
    try:
        columns = _columns_of_frame(parquet.read_table(file), str(file))
    except (OSError, ValueError) as error:
        raise StepclrError(f"{file} cannot be read: {fault_of(error)}") from error
    return _table(str(file), file.parent, columns, zip(*columns.values(), strict=True))


def _columns_of_frame(frame: Any, where: str = "the data frame") -> dict[str, list[Any]]:
    """The columns of a data frame of pandas, polars or pyarrow that a table may need; none of another object."""
    names = getattr(frame, "column_names", None) or getattr(frame, "columns", None)
    if names is None or not hasattr(frame, "__getitem__"):
        return {}
    _places(where, [str(name) for name in names])  # of two columns of one name, no frame gives the second
    columns = {}
    for name in names:
        if _word(str(name)) in (*PATH_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS):
            values = frame[name]
            listed = next(method for method in ("to_pylist", "to_list", "tolist") if hasattr(values, method))
            columns[str(name)] = getattr(values, listed)()
    return columns or {str(name): [] for name in names}


def _table(name: str, folder: Path, header: Iterable[str], values: Iterable[Sequence[Any]]) -> LabelTable:
    """A table of rows whose values may be of any type."""
    header = list(header)
    places = _places(name, header)
    if places is None:
        raise _no_columns(name, header)
    rows = []
    for row in values:
        path, label, split = (row[place] if place is not None else None for place in places)
        if (label := _cell(label)) or _cell(split):
            rows.append(Row(_text_of(path), label, _cell(split)))
    return _with_splits(LabelTable(name, folder, rows, places[2] is not None))


def _read_text(file: Path) -> LabelTable:
    rows = []
    text = _text(file)
    try:
        header, delimiter, places = _header(file, text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        next(reader)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            # A label with an unquoted comma is cut in two, and the first part would pass for the label.
            if len(cells) <= max(place for place in places if place is not None) or any(cells[len(header) :]):
                raise StepclrError(f"{file}, line {reader.line_num}: {len(cells)} cells instead of {len(header)}")
            _, label, split = (cells[place] if place is not None else "" for place in places)
            if not _is_text(label):  # unlike a path, which need not be
                raise StepclrError(
                    f"{file}, line {reader.line_num}: the label {label!r} is not UTF-8: save the table as CSV UTF-8"
                )
            if label or split:
                # A name may begin with a space.
                rows.append(Row(row[places[0]], _cell(label), split, reader.line_num))
    except csv.Error as error:
        raise StepclrError(f"{file} is not a CSV file: {error}") from error
    return _with_splits(LabelTable(str(file), file.parent, rows, places[2] is not None))


def _with_splits(table: LabelTable) -> LabelTable:
    """The table with "train" and "test" for every way to write them. Raises StepclrError for other splits."""
    others = sorted({row.split for row in table.rows if row.split and row.split.lower() not in SPLIT_OF})
    if others:
        shown = ", ".join(map(repr, others[:EXAMPLES])) + (", ..." if len(others) > EXAMPLES else "")
        raise StepclrError(
            f"{table.name}: the column split has {shown}; it may have train (or training) and test (or val, valid, "
            "validation)"
        )
    rows = [row._replace(split=SPLIT_OF[row.split.lower()]) if row.split else row for row in table.rows]
    return LabelTable(table.name, table.folder, rows, table.has_splits)


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StepclrError(f"{file} cannot be read: {error.strerror}") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # the "Unicode text" of a spreadsheet
        return content.decode("utf-16", "replace")
    # A spreadsheet may begin a file with a byte order mark; paths need not be valid text.
    return content.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")


def _is_text(name: str) -> bool:
    """Whether the name has no bytes that could not be decoded."""
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


Places = tuple[int, int, int | None]  # of the path, the label and the split among the columns


def _header(file: Path, text: str) -> tuple[list[str], str, Places]:
    """The header, the delimiter by which it has a path and a label, and the places of its columns."""
    first = text.splitlines()[0] if text else ""
    widest: list[str] = []
    for delimiter in DELIMITERS:
        header = next(csv.reader([first], delimiter=delimiter), [])
        widest = max(widest, header, key=len)
        if places := _places(str(file), header):
            return header, delimiter, places
    raise _no_columns(str(file), widest)


def _places(name: str, header: Sequence[str]) -> Places | None:
    """Where the path, the label and the split are; None without a path or a label. StepclrError for two of a kind."""
    words = [_word(cell) for cell in header]
    paths = [i for i, word in enumerate(words) if word in PATH_COLUMNS]
    labels = [i for i, word in enumerate(words) if word in LABEL_COLUMNS]
    splits = [i for i, word in enumerate(words) if word in SPLIT_COLUMNS]
    if not (paths and labels):
        return None
    for places in (paths, labels, splits):
        if len(places) > 1:
            two = " and ".join(header[i].strip() for i in places[:2])
            raise StepclrError(f"{name}: the columns {two} say the same; keep one of them")
    return paths[0], labels[0], splits[0] if splits else None


def _no_columns(name: str, header: Iterable[str]) -> StepclrError:
    shown = ", ".join(cell.strip() for cell in header) or "none"
    return StepclrError(
        f"{name} must have a header with the columns path (or file, filename, image) and label (or class); "
        f"its columns are {shown}"
    )


def _word(column: str) -> str:
    return column.strip().lower().translate({ord(mark): None for mark in " _-"})


def _cell(value: Any) -> str:
    """A label or a split as text; "" for a missing value. Raises StepclrError for a list."""
    if isinstance(value, list | tuple | dict):
        raise StepclrError(f"{value!r} cannot be a label or a split: each image has one of them, as text or a number")
    if type(value).__name__ in MISSING or value != value:  # NaN alone differs from itself
        return ""
    if isinstance(value, float) and value.is_integer():  # pandas' whole numbers beside missing ones
        value = int(value)
    return unicodedata.normalize("NFC", _text_of(value).strip())


def _text_of(value: Any) -> str:
    """A value as text; some programs write the texts of a .parquet as bytes."""
    return os.fsdecode(value) if isinstance(value, bytes | os.PathLike) else str(value)


def _plain(path: str) -> str:
    """A path as several systems write it: with one form of each accented letter, slashes, and no `./`."""
    return unicodedata.normalize("NFC", path.strip()).replace("\\", "/").removeprefix("./")


class _Finder:
    """Finds images by the paths in tables."""

    def __init__(self, sections: Sequence[Section]) -> None:
        self.sections = sections
        self.exact: dict[str, list[int]] = {}
        for section in sections:
            for i, name in enumerate(section.names, section.start):
                entries = self.exact.setdefault(name, [])
                if i not in entries[-1:]:  # an image may be in two sections under one name
                    entries.append(i)
        self.alike: dict[str, list[int]] = {}
        self.inside: dict[str, list[int]] = {}
        self.places: dict[str, list[int]] = {}
        self.places_alike: dict[str, list[int]] = {}

    def find(self, path: str, folder: Path) -> list[int]:
        """The images that a path in a table of this folder could be, by the first way that finds any."""
        exact = self.exact.get(path, [])
        if len(exact) == 1:
            return exact
        if not self.alike:
            self._index()
        located = self._located(path, folder)
        if len(located) == 1:
            return located
        plain = _plain(path)
        return exact or self.alike.get(plain) or located or self.inside.get(plain, [])

    def _index(self) -> None:
        for name, indices in self.exact.items():
            entries = self.alike.setdefault(_plain(name), [])
            entries += [i for i in indices if i not in entries]
        if len({name.split("/")[0] for name in self.alike}) == 1:  # one folder around all of them
            self.inside = {name.partition("/")[2]: indices for name, indices in self.alike.items()}
        # A name may itself be absolute or lead out of its folder, as that of a file given as ../photos/1.jpg.
        for section in self.sections:
            for root in {section.root, os.path.realpath(section.root)} if section.root else ():
                for i, name in enumerate(section.names, section.start):
                    self.places.setdefault(os.path.normpath(os.path.join(root, name)), []).append(i)
        for place, indices in self.places.items():
            self.places_alike.setdefault(_plain(place), []).extend(indices)

    def _located(self, path: str, folder: Path) -> list[int]:
        """The image at an absolute path, or at one relative to the table's folder."""
        for base in (os.path.abspath(folder), os.path.realpath(folder)):
            place = os.path.normpath(os.path.join(base, path.strip().replace("\\", "/")))
            if located := self.places.get(place) or self.places_alike.get(_plain(place)):
                return located
        return []
