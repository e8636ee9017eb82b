"""Labels in tables: the class of each image, by its path, as spreadsheets and other programs write it."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stepclr.errors import StepclrError

DELIMITERS = ",;\t"
PATH_COLUMNS = ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "img")
LABEL_COLUMNS = ("label", "class", "classname", "category")


def read_labels(files: Iterable[Path], names: Sequence[str], where: str) -> dict[int, str]:
    """The labels of images in tables, by the images' indices in `names`; an empty label says nothing.

    A table has a header, in which the columns are found by their usual names, and commas, semicolons or tabs. Spaces
    around a cell do not count. Raises StepclrError, with the file and the line, for another table, for an image that is
    not among `names` (which are those of `where`), and for an image with two labels.
    """
    index_of = {name: [i] for i, name in enumerate(names)}
    alike: dict[str, list[int]] = {}
    labels: dict[int, str] = {}
    for file in files:
        for line, path, label in _rows(file):
            if path not in index_of and not alike:
                for i, name in enumerate(names):
                    alike.setdefault(_plain(name), []).append(i)
            same = index_of.get(path) or alike.get(_plain(path), [])
            if len(same) != 1:
                problem = "several images that could be" if same else "no image"
                raise StepclrError(f"{file}, line {line}: {where} has {problem} {path!r}")
            if labels.setdefault(same[0], label) != label:
                raise StepclrError(f"{file}, line {line}: {path!r} has two labels, {labels[same[0]]!r} and {label!r}")
    return labels


def _rows(file: Path) -> Iterator[tuple[int, str, str]]:
    """(line, path, label) of each row that has a label."""
    text = _text(file)
    try:
        header, delimiter, path_at, label_at = _columns(file, text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        next(reader)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            # A label with an unquoted comma is cut in two, and the first part would pass for the label.
            if len(cells) <= max(path_at, label_at) or any(cells[len(header) :]):
                raise StepclrError(f"{file}, line {reader.line_num}: {len(cells)} cells instead of {len(header)}")
            if cells[label_at]:
                yield reader.line_num, cells[path_at], unicodedata.normalize("NFC", cells[label_at])
    except csv.Error as error:
        raise StepclrError(f"{file} is not a CSV file: {error}") from error


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StepclrError(f"{file} cannot be read: {error.strerror}") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # the "Unicode text" of a spreadsheet
        return content.decode("utf-16", "replace")
    # A spreadsheet may begin a file with a byte order mark; paths need not be valid text.
    return content.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")


def _columns(file: Path, text: str) -> tuple[list[str], str, int, int]:
    """The header, the delimiter by which it has a path and a label, and the places of the two."""
    first = text.splitlines()[0] if text else ""
    headers = {delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in DELIMITERS}
    for delimiter, header in headers.items():
        words = [cell.strip().lower().translate({ord(mark): None for mark in " _-"}) for cell in header]
        paths = [i for i, word in enumerate(words) if word in PATH_COLUMNS]
        labels = [i for i, word in enumerate(words) if word in LABEL_COLUMNS]
        for places in (paths, labels):
            if paths and labels and len(places) > 1:
                two = " and ".join(header[i].strip() for i in places[:2])
                raise StepclrError(f"{file}: the columns {two} say the same; keep one of them")
        if paths and labels:
            return header, delimiter, paths[0], labels[0]
    shown = ", ".join(cell.strip() for cell in max(headers.values(), key=len)) or "none"
    raise StepclrError(
        f"{file} must have a header with the columns path (or file, filename, image) and label (or class); "
        f"its columns are {shown}"
    )


def _plain(path: str) -> str:
    """A path as several systems write it: with one form of each accented letter, slashes, and no `./`."""
    return unicodedata.normalize("NFC", path.strip()).replace("\\", "/").removeprefix("./")
