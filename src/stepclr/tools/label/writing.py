"""`write_label_page`: the images to label next, in one HTML file with everything that is needed to label them."""

import csv
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stepclr.data.images import ImageSet
from stepclr.data.reading import Reading, as_words
from stepclr.data.sources import Source, open_read_as
from stepclr.errors import StepclrError, check_suffix, check_whole
from stepclr.io import checksum_of, write_whole
from stepclr.metrics import nearest
from stepclr.model.timm_weights import timm_name
from stepclr.model.weights import ENCODER_FILE
from stepclr.pretraining.run import Run
from stepclr.threads import Progress, pool
from stepclr.tools.curate.suggest import Tables, paths_of, suggest_labels
from stepclr.tools.images import data_uri, jpeg_thumbnail, sharp_uri
from stepclr.tools.label.commands import next_commands, places_of, short
from stepclr.tools.options import option_words
from stepclr.tools.pages import asset, template
from stepclr.tools.search.index import EmbeddingIndex, open_index
from stepclr.tools.search.table import IndexUpdate, build_index, update_run_index

Json = dict[str, Any]
SIDES = (512, 384, 256, 160)  # px, of an image's long side: the first with which the page is small enough
IMAGE_BYTES = 48 * 2**20  # of all images of a page
BATCH = 64  # images read at a time
NEIGHBORS = 6  # shown with each image
HEADER = ["path", "label"]  # of labels.csv
IMAGES, PAGE = 60, "label.html"  # by default: how many images to label, and the page


@dataclass(frozen=True)
class LabelPage:
    """A page that was written.

    Attributes:
        path: of the HTML file.
        images: how many images it asks for.
        known: how many images of the index have a label already.
        total: how many images the index has.
        notes: what a user should know about the page, a sentence each.
        commands: (what it does, command), to run with the labels.csv that the page saves.
    """

    path: Path
    images: int
    known: int
    total: int
    notes: list[str]
    commands: list[tuple[str, str]]


@dataclass
class _Round:
    """The images of a page: an index with all labels so far, the classes, and what to label next."""

    index: EmbeddingIndex
    classes: list[str]
    chosen: list[int]
    unsure: set[int]
    notes: list[str] = field(default_factory=list)


def write_label_page(
    index: str | os.PathLike[str] | EmbeddingIndex,
    source: Source | None = None,
    classes: str | Iterable[str] | None = None,
    n: int = IMAGES,
    labels: Tables = (),
    out: str | os.PathLike[str] = PAGE,
    seed: int = 0,
) -> LabelPage:
    """Write a page on which a person labels the `n` images of an index to label next, by `suggest_labels`.

    The page is one HTML file, which needs no network. It saves `labels.csv` with the columns path and label, and with
    the labels known before. "Not sure" is an empty label; an image that has one in such a file is not asked again.

    Args:
        index: what `stepclr embed` wrote, or an `EmbeddingIndex`.
        source: where its images are now; by default where they were embedded. Without them, the page shows thumbnails.
        classes: the names to choose from, or one string with commas; labels that the index itself has of other classes
            do not count. By default the classes of the index and of `labels`.
        labels: files with labels, as for `suggest_labels`.
        out: the file to write; its suffix must be .html.
        seed: as for `suggest_labels`.

    Raises StepclrError as `suggest_labels` does, if no class is known, if every image has a label, and if no image can
    be shown.
    """
    path = Path(out)
    check_suffix(path, [".html"])
    check_whole("n", n, 1)
    images = _next_round(open_index(index), _names(classes), n, paths_of(labels), seed)
    named = classes and not any("," in name for name in images.classes)
    repeated = {"classes": ",".join(images.classes) if named else None, "n": n if n != IMAGES else None}
    repeated |= {"seed": seed or None, "out": short(str(path)) if path != Path(PAGE) else None}
    commands = next_commands(index, images.index, source, option_words(repeated))
    data = _data(images, _found(images, source))
    known = int((images.index.labels >= 0).sum())
    page = template("label").render(
        title=", ".join(Path(source).name for source in places_of(images.index)) or "images",
        style=asset("style.css") + asset("label/page.css"),
        script=asset("label/page.js"),
        count=len(data["images"]),
        known=known,
        data=data,
        commands=commands,
    )
    # A file name may be undecodable. JSON has it exactly; where it is shown, a question mark stands for such a byte.
    write_whole(path, lambda file: file.write(page.encode(errors="replace")))
    return LabelPage(path, len(data["images"]), known, len(images.index), images.notes, commands)


# --- which images ---


def index_for(
    where: Path, source: ImageSet | None, other: Path, progress: Progress | None = None
) -> tuple[Path, IndexUpdate | None]:
    """The index to use where a user names an index or an encoder, and how it was updated.

    An index is used as it is. A run has one of its own images, RUN/index; where `source` has other images, or the
    encoder is a file or `timm:NAME`, the index is `other`. Raises StepclrError for such an encoder without a source.
    """
    run = Run(where)
    if run.exists():
        config = run.config
        chosen = config.limit or config.classes or config.split  # a part of its source
        whole = not chosen and source and config.source in (source.source, os.path.abspath(source.source))
        if source is None or (whole and config.reading.changed(source.store.reading) == config.reading):
            return where / "index", update_run_index(where, progress)[0]
    elif where.suffix != Path(ENCODER_FILE).suffix and timm_name(where) is None:
        return where, None
    if source is None:
        raise StepclrError(f"{where} is an encoder: pass a source of images, or an index")
    return other, build_index(where, source, other, progress=progress)


def _next_round(index: EmbeddingIndex, classes: list[str], n: int, files: list[Path], seed: int) -> _Round:
    notes = []
    if classes:  # labels of the index itself may be the names of folders that are no classes
        wanted = [label for label, name in enumerate(index.classes) if name in classes]
        counts = np.isin(index.labels, wanted)
        if others := int(((index.labels >= 0) & ~counts).sum()):
            notes.append(f"labels of the index that do not count, because they are of other classes: {others:,}")
        index = replace(index, labels=np.where(counts, index.labels, -1))
    unsure = _unsure(files, index.paths)
    # An image without a clear label stays among the suggestions: what is like it would be as hard to label.
    suggested = suggest_labels(index, n + len(unsure), files, seed)
    index = suggested.index
    unsure = {i for i in unsure if index.labels[i] < 0}  # another file may have a label of it
    present = [index.classes[label] for label in np.unique(index.labels[index.labels >= 0]).tolist()]
    classes = list(dict.fromkeys([*classes, *(present if classes else index.classes)]))
    if not classes:
        raise StepclrError("no class has a name yet: name them with classes=cat,dog,other")
    chosen = [i for i in suggested.indices.tolist() if i not in unsure][:n]
    if not chosen:
        raise StepclrError(
            f"there is nothing to label: all {len(index):,} images have a label of {', '.join(present[:5])}; "
            "to label them by other names, pass other classes"
        )
    if unsure:
        notes.append(f"images that are not asked again, because nobody was sure about them: {len(unsure):,}")
    return _Round(index, classes, chosen, unsure, notes)


def _names(classes: str | Iterable[str] | None) -> list[str]:
    given = classes.split(",") if isinstance(classes, str) else classes or []
    names = [unicodedata.normalize("NFC", name).strip() for name in given]
    return [name for name in dict.fromkeys(names) if name]


def _unsure(files: Iterable[Path], paths: list[str]) -> set[int]:
    """The images with an empty label in files that a page saved; in other files it means that nobody looked yet."""
    index_of = {path: i for i, path in enumerate(paths)}
    unsure = set()
    for file in files:
        with suppress(OSError, csv.Error), file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            rows = csv.reader(opened)
            if next(rows, None) == HEADER:
                unsure |= {index_of[row[0]] for row in rows if row[1:] == [""] and row[0] in index_of}
    return unsure


# --- what the page shows ---


@dataclass
class _Found:
    """The images as data URIs by their indices: large, to be labeled; small, their neighbors."""

    large: dict[int, str]
    small: dict[int, str]
    neighbors: dict[int, list[int]]


def _data(images: _Round, found: _Found) -> Json:
    """Everything that the page knows, for JSON."""
    index = images.index
    shown = [i for i in images.chosen if i in found.large]
    item_of = {i: item for item, i in enumerate(shown)}
    place_of = {i: place for place, i in enumerate(found.small)}
    asked = []
    for i in shown:
        neighbors = [place_of[j] for j in found.neighbors[i] if j in place_of]
        asked.append({"path": index.paths[i], "src": found.large[i], "neighbors": neighbors})
    thumbnails = []
    for i, src in found.small.items():
        label = index.class_name(i)
        thumbnails.append({"path": index.paths[i], "src": src, "label": label, "item": item_of.get(i, -1)})
    known = [[index.paths[i], index.class_name(i)] for i in np.flatnonzero(index.labels >= 0).tolist()]
    known += [[index.paths[i], ""] for i in sorted(images.unsure)]
    data: Json = {
        "classes": images.classes,
        "header": HEADER,
        "known": known,
        "images": asked,
        "thumbnails": thumbnails,
    }
    # The browser keeps answers by this key: those of another page are never taken for this one's.
    return data | {"key": f"stepclr label {checksum_of(json.dumps(data).encode())}"}


def _found(images: _Round, source: Source | None) -> _Found:
    """The images that the page shows, from the source or, of what it lacks, from the index's thumbnails."""
    index, chosen = images.index, images.chosen
    unit = F.normalize(torch.from_numpy(index.vectors).float())
    neighbors = {}
    for i, near in zip(chosen, nearest(unit[chosen], unit, NEIGHBORS + 1)[1].tolist(), strict=True):
        neighbors[i] = [j for j in near if j != i][:NEIGHBORS]
    stored = {i: data_uri(content) for i, content in enumerate(index.thumbnails) if content}
    nearby = dict.fromkeys(j for near in neighbors.values() for j in near)

    opened = _opened(index, source, images.notes)
    large, small = {}, {}
    if opened is not None:
        row_of = {name: row for row, name in enumerate(opened.names)}
        rows = {i: row_of[index.paths[i]] for i in chosen if index.paths[i] in row_of}
        if source is not None and not rows:
            raise StepclrError(f"{opened.source} has none of the images to label, such as {index.paths[chosen[0]]!r}")
        large = _as_large_as_possible(opened, rows, images.notes)
        missing = {j: row_of[index.paths[j]] for j in nearby if j not in stored and index.paths[j] in row_of}
        small = _read(opened, missing, SIDES[-1], lambda pixels: data_uri(jpeg_thumbnail(pixels)))
        if absent := sum(i not in large for i in chosen):
            images.notes.append(
                f"images that cannot be read from {opened.source}, whose thumbnails are shown: {absent:,}"
            )
    large |= {i: stored[i] for i in chosen if i not in large and i in stored}
    small |= {j: stored[j] for j in nearby if j in stored}
    if not large:
        raise StepclrError(
            f"the images of {as_words(index.source) or 'the index'} cannot be shown: pass the source they are in"
        )
    return _Found(large, small, neighbors)


def _opened(index: EmbeddingIndex, source: Source | None, notes: list[str]) -> ImageSet | None:
    """The source; None where it is not given and that of the index cannot be opened any more."""
    try:
        opened = open_read_as(index.source if source is None else source, index.reading)
    except StepclrError:
        if source is not None:
            raise
        notes.append(
            f"the page shows thumbnails: the images of {as_words(index.source)!r} cannot be opened; pass the source "
            "they are in"
        )
        return None
    asked = opened.store.reading
    return opened.read_as(Reading(index.value_range, channels=index.channels).changed(asked))


def _as_large_as_possible(images: ImageSet, rows: Mapping[int, int], notes: list[str]) -> dict[int, str]:
    uris: dict[int, str] = {}
    for side in SIDES:
        uris = _read(images, rows, side, partial(sharp_uri, side=side))
        if sum(map(len, uris.values())) <= IMAGE_BYTES:
            break
    if side < SIDES[0]:
        limit = f"{IMAGE_BYTES // 2**20} MB"
        notes.append(
            f"images are shown at up to {side} px, so that the page stays below {limit}; a smaller n shows more"
        )
    return uris


def _read(images: ImageSet, rows: Mapping[int, int], side: int, to_uri: Callable[[Tensor], str]) -> dict[int, str]:
    """The images at these rows that can be read, as `to_uri` writes them, by the keys of `rows`."""
    smaller = replace(images, short_side=min(side, images.short_side or side))
    key_of = {row: i for i, row in rows.items()}
    wanted = list(key_of)
    uris = {}
    for start in range(0, len(wanted), BATCH):
        pixels, kept = smaller.read_readable(wanted[start : start + BATCH])
        for row, uri in zip(kept.tolist(), pool().map(to_uri, pixels), strict=True):
            uris[key_of[row]] = uri
    return uris
