"""The command that tells what to look at in an index. torch is imported inside it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from tyro.conf import Positional, arg

from stepclr.cli.arguments import say
from stepclr.errors import StepclrError, check_suffix, choose, one_line

if TYPE_CHECKING:
    from stepclr.tools.search.index import Index

COLUMNS = 6  # of a contact sheet; of a group of duplicates it shows as many


class Found(NamedTuple):
    """A table, and the rows of a contact sheet: (image's number in the index, first line of its caption)."""

    header: Sequence[str]
    table: list[tuple[str | int | float, ...]]
    sheet: list[list[tuple[int, str]]]
    summary: str


def find(
    what: Positional[Annotated[str, arg(metavar="{duplicates,outliers,next}")]],
    index: Positional[Annotated[Path, arg(metavar="INDEX")]],
    n: Annotated[int, arg(aliases=["-n"], metavar="N")] = 50,
    labels: Annotated[tuple[Path, ...], arg(metavar="FILE.csv", help_behavior_hint="(default: the index's own)")] = (),
    seed: int = 0,
    out: Annotated[Path | None, arg(metavar="FOLDER|FILE.csv", help_behavior_hint="(default: WHAT.csv)")] = None,
) -> None:
    """Find near duplicates, odd ones out, or the images to label next; writes a CSV and a contact sheet.

    Args:
        what: duplicates, outliers, or next: images to label, each speaking for many that no label speaks for yet.
        index: What stepclr embed wrote: a folder, a .parquet or an .npz.
        n: Groups of duplicates, or images, to tell of.
        labels: Labels for next besides the index's own: the CSV that it wrote, its column label filled in; several too.
        seed: Which part of a large index next looks at.
        out: CSV to write, or a folder to put it in; the contact sheet is the .png beside it.
    """
    tell = {"duplicates": _duplicates, "outliers": _outliers, "next": _next}
    choose("thing to find", what, tell)
    if n < 1:
        raise StepclrError(f"-n must be at least 1, not {n}")
    if labels and what != "next":
        raise StepclrError(f"--labels is for find next, not for find {what}")
    path = _place(what, out)
    for file in labels:
        if file.exists() and path.exists() and file.samefile(path):
            raise StepclrError(f"{path} holds the labels and would be written over: name another file with --out")
    from stepclr.io import write_csv, write_whole
    from stepclr.tools.images import contact_sheet, stacked
    from stepclr.tools.search.index import open_index

    opened = open_index(index)
    for file in labels:
        opened = _labelled(opened, file)
    found = tell[what](opened, n, seed)
    write_csv(path, [found.header, *found.table])
    say(found.summary)
    say(f"{path}: the table")
    if not found.sheet:
        return
    if not opened.thumbnails:
        say(f"no contact sheet: {index} has no thumbnails; a folder or a .parquet has them")
        return
    image, sheets = path.with_suffix(".png"), []
    for row in found.sheet:
        captions = [f"{caption}\n{one_line(Path(opened.paths[i]).name)}" for i, caption in row]
        sheets.append(contact_sheet([opened.thumbnails[i] for i, _ in row], captions, COLUMNS))
    write_whole(image, lambda file: stacked(sheets).save(file, "PNG"))
    say(f"{image}: the contact sheet")


def _place(what: str, out: Path | None) -> Path:
    if out is None:
        return Path(f"{what}.csv")
    if out.is_dir() or not out.suffix:
        return out / f"{what}.csv"
    check_suffix(out, [".csv"], ", or be a folder")
    return out


def _duplicates(index: "Index", n: int, seed: int) -> Found:  # noqa: ARG001
    import torch

    from stepclr.data.decode import upright_rgb
    from stepclr.tools.curate.duplicates import groups
    from stepclr.tools.curate.find import duplicates
    from stepclr.tools.images import GRAY_PX, gray_thumbnail

    def small(content: bytes) -> torch.Tensor:
        try:
            return gray_thumbnail(upright_rgb(content))
        except StepclrError:  # without detail it is like no other
            return torch.zeros(GRAY_PX, GRAY_PX, dtype=torch.uint8)

    thumbnails = torch.stack([small(content) for content in index.thumbnails]) if index.thumbnails else None
    rows, scores = duplicates(index.vectors, thumbnails)
    pairs = [(i, j) for i, j in rows.tolist()]
    every = groups(pairs)
    place = {i: number for number, group in enumerate(every) for i in group}
    surest = list(dict.fromkeys(place[i] for i, _ in pairs))[:n]  # pairs come the surest first
    number = {group: rank for rank, group in enumerate(surest, 1)}
    table = [
        (number[place[i]], index.paths[i], index.paths[j], round(score, 4))
        for (i, j), score in zip(pairs, scores.tolist(), strict=True)
        if place[i] in number
    ]
    sheet = []
    for group in surest:
        members = every[group]
        more = f" +{len(members) - COLUMNS} more" if len(members) > COLUMNS else ""
        sheet.append([(i, f"group {number[group]}{more}") for i in members[:COLUMNS]])
    return Found(
        ("group", "path", "other", "score"),
        sorted(table, key=lambda row: row[0]),
        sheet,
        f"{len(place):,} of {len(index):,} images are versions of another: {len(every):,} groups"
        + (f", of which the {n:,} surest are told" if len(every) > n else ""),
    )


def _outliers(index: "Index", n: int, seed: int) -> Found:  # noqa: ARG001
    import numpy as np

    from stepclr.tools.curate.find import outliers

    scores = outliers(index.vectors)
    rows = np.argsort(-scores, kind="stable")[:n].tolist()
    return Found(
        ("rank", "path", "label", "score"),
        [(rank, index.paths[i], _label(index, i), round(float(scores[i]), 4)) for rank, i in enumerate(rows, 1)],
        [[(i, f"{rank}  {scores[i]:.3f}") for rank, i in enumerate(rows, 1)]],
        f"the {len(rows):,} oddest of {len(index):,} images",
    )


def _next(index: "Index", n: int, seed: int) -> Found:
    import numpy as np

    from stepclr.tools.curate.find import to_label_next

    rows, uncertainty = to_label_next(index.vectors, index.labels, n, seed)
    known = index.labels[index.labels >= 0]
    how = f"{len(known):,} have a label, of {len(np.unique(known)):,} classes" if len(known) else "none has a label yet"
    ranked = list(enumerate(zip(rows.tolist(), uncertainty.tolist(), strict=True), 1))
    return Found(
        ("path", "label", "rank", "uncertainty"),  # the label, empty, is the user's to fill in
        [(index.paths[i], "", rank, round(unsure, 4)) for rank, (i, unsure) in ranked],
        [[(i, f"{rank}  unsure {unsure:.2f}") for rank, (i, unsure) in ranked]] if ranked else [],
        f"{len(rows):,} of {len(index):,} images to label next; {how}",
    )


def _label(index: "Index", row: int) -> str:
    return index.classes[index.labels[row]] if index.labels[row] >= 0 else ""


def _labelled(index: "Index", file: Path) -> "Index":
    """The index with the labels of a CSV of path and label; an empty label changes nothing.

    Raises StepclrError where it is no such table, or names an image that the index has not.
    """
    try:
        text = file.read_bytes().removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")  # as Excel begins it
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except OSError as error:
        raise StepclrError(f"{file} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise StepclrError(f"{file} is no CSV: {error}") from error
    if not rows or not {"path", "label"} <= rows[0].keys():
        raise StepclrError(f"{file} must have the columns path and label, and a row for each label")
    place = {path: i for i, path in enumerate(index.paths)}
    labels, classes = index.labels.copy(), list(index.classes)
    for path, label in ((row["path"], row["label"]) for row in rows):
        if not label:
            continue
        if path not in place:
            raise StepclrError(f"{file}: the index has no image {path!r}")
        if label not in classes:
            classes.append(label)
        labels[place[path]] = classes.index(label)
    return replace(index, labels=labels, classes=classes)
