"""An image -> the images of an index most similar to it, by the encoder that made the index."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from stepclr.data.decode import decode, reduced, source_side
from stepclr.data.formats import UnreadableError, reasons
from stepclr.data.reading import Reading
from stepclr.data.sources import open_images
from stepclr.data.stores import as_image
from stepclr.device import default_device, dtype_of
from stepclr.errors import StepclrError, check_whole, one_line
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.model.files import load_encoder
from stepclr.model.timm_weights import timm_name
from stepclr.model.weights import ENCODER_FILE
from stepclr.tools.images import contact_sheet, jpeg_thumbnail, stacked
from stepclr.tools.search import nearest
from stepclr.tools.search.index import (
    COLUMNS,
    EmbeddingIndex,
    IndexMetadata,
    encoder_checksum,
    from_text,
    open_index,
    open_table,
    read_metadata,
    reading,
)

Query = str | os.PathLike[str] | Image.Image | UInt8[Tensor, "c h w"]


@dataclass(frozen=True)
class Hit:
    """An image found in an index.

    Attributes:
        path: relative to the index's source.
        label: its class; None if it has none.
        similarity: the cosine of its h and the query's.
        thumbnail: a small JPEG; empty for an .npz.
    """

    path: str
    label: str | None
    similarity: float
    thumbnail: bytes


def search(
    index: str | os.PathLike[str], query: Query, k: int = 12, run: str | os.PathLike[str] | None = None
) -> list[Hit]:
    """The `k` images of an index most similar to a query, by the cosine of their representations h.

    Args:
        index: what `stepclr embed` wrote: a folder, a .parquet or an .npz.
        query: an image file, a PIL image or uint8 `[3, H, W]`.
        run: as for `Search`, which is this function for many queries.

    Raises StepclrError as `Search` does, and if the query cannot be read.
    """
    return Search(index, run)(query, k)


class Search:
    """An index opened for many queries.

    Args:
        index: what `stepclr embed` wrote: a folder, a .parquet or an .npz.
        run: the run that made it, its encoder file, "timm:NAME", or the encoder itself. By default the copy in the
            folder; for a file, the `encoder.safetensors` alongside it or what made it.

    Attributes:
        rows: the number of images in the index.
        approximate: whether some rows are not compared; recall: at 10, if it was measured.
        thumbnails: whether hits have thumbnails.

    Raises StepclrError if there is no index or it is corrupt, and if its encoder is missing or is a different one.
    """

    def __init__(self, index: str | os.PathLike[str], run: str | os.PathLike[str] | Encoder | None = None) -> None:
        self.where = Path(index)
        self.metadata = read_metadata(self.where)
        self.recall = self.metadata.recall if self.metadata else None
        self.thumbnails = self.metadata is not None
        self._table: Any = None
        self._index: EmbeddingIndex | None = None
        # A folder with many rows stays on disk; anything else is read into memory.
        if self.where.is_dir():
            _, self._table = open_table(self.where)
            with reading(self.where):
                self.rows = int(self._table.count_rows())
        if self._table is None or self.rows <= nearest.EXACT_ROWS:
            self._index, self._table = open_index(self.where), None
            self.rows = len(self._index)
        self.approximate = self._index is None
        features = self._index.vectors.shape[1] if self._index else 0
        self.encoder = _find_encoder(self.where, self.metadata, features, run).to(default_device())

    def describe(self) -> str:
        """How many images there are, and how they are searched."""
        if not self.approximate:
            return f"{self.rows:,} images, every one compared"
        known = "not measured: run stepclr embed again to finish it" if self.recall is None else f"{self.recall:.3f}"
        return f"{self.rows:,} images, approximate; recall at 10 against comparing every one: {known}"

    def __call__(self, query: Query, k: int = 12) -> list[Hit]:
        """The `k` most similar images, the most similar first; all of them if there are fewer."""
        return self.nearest(self.represent(read_query(query, self.encoder)), k)

    def represent(self, image: UInt8[Tensor, "c h w"]) -> Float[Tensor, " features"]:
        """h of an image, computed as that of the index's images was."""
        precision = self.metadata.precision if self.metadata else "fp32"
        h, _ = represent(self.encoder, open_images(image[None], channels=self.encoder.channels), dtype_of(precision))
        return h[0]

    def nearest(self, h: Float[Tensor, " features"], k: int = 12) -> list[Hit]:
        """`__call__` for a query whose h is known."""
        check_whole("k", k, 1)
        hits: list[Hit] = []
        if self._index is None:
            with reading(self.where):
                rows = nearest.approximate(self._table, h.numpy(), min(k, self.rows), COLUMNS[1:]).to_pylist()
                for row in rows:
                    label = None if row["label"] is None else from_text(row["label"])
                    hits.append(Hit(from_text(row["path"]), label, 1 - row["_distance"], row["thumbnail"] or b""))
                return hits
        cosines, indices = nearest.exact(h[None], [torch.from_numpy(self._index.vectors)], k)
        for i, cosine in zip(indices[0].tolist(), cosines[0].tolist(), strict=True):
            thumbnail = self._index.thumbnails[i] if self._index.thumbnails else b""
            hits.append(Hit(self._index.paths[i], self._index.class_name(i), cosine, thumbnail))
        return hits


def check_query(path: Path) -> None:
    """Raise StepclrError unless there is a file to read a query from."""
    if not path.exists():
        raise StepclrError(f"{path} does not exist")
    if not path.is_file():
        raise StepclrError(f"{path} is not an image file")


def read_query(query: Query, encoder: Encoder) -> UInt8[Tensor, "c h w"]:
    """A query's pixels, resized as the images of an index are before the encoder sees them."""
    short_side, reading = source_side(encoder.size), Reading(encoder.value_range, channels=encoder.channels)
    if isinstance(query, Tensor | Image.Image):
        return reduced(as_image(query, reading), short_side)
    path = Path(query)
    check_query(path)
    try:
        with reasons(), path.open("rb") as file:
            return decode(file, short_side, reading)
    except UnreadableError as reason:
        # A query is read as the encoder takes images, whatever option would read it otherwise.
        raise StepclrError(f"{path} cannot be read: {reason.fault}") from reason


def sheet_of(
    names: Sequence[str], queries: Sequence[UInt8[Tensor, "c h w"]], hits: Sequence[Sequence[Hit]]
) -> Image.Image:
    """A contact sheet: each query under its name, followed by its hits with rank, similarity and name."""
    sheets = []
    for name, query, of_query in zip(names, queries, hits, strict=True):
        thumbnails, captions = [jpeg_thumbnail(query)], [f"query\n{one_line(name)}"]
        for rank, hit in enumerate(of_query, 1):
            thumbnails.append(hit.thumbnail)
            captions.append(f"{rank}  {hit.similarity:.3f}\n{one_line(Path(hit.path).name)}")
        sheets.append(contact_sheet(thumbnails, captions))
    return stacked(sheets)


def _find_encoder(
    where: Path, metadata: IndexMetadata | None, features: int, run: str | os.PathLike[str] | Encoder | None
) -> Encoder:
    """The encoder that made an index, from the first place that has it: `run`, or else alongside, or the run it names.

    An .npz has no metadata: there any encoder will do that has as many features as its vectors.
    """
    places: list[Path | Encoder] = []
    if isinstance(run, Encoder):
        places.append(run)
    elif run:
        places.append(Path(run))  # even if it does not exist: load_encoder says so
    else:
        named = [(where if where.is_dir() else where.parent) / ENCODER_FILE]
        if metadata and not where.is_dir():
            named.append(Path(metadata.run))
        places.extend(path for path in named if path.exists() or timm_name(path) is not None)
    for place in places:
        try:
            encoder = place if isinstance(place, Encoder) else load_encoder(place)
        except StepclrError:
            if run or place == places[-1]:
                raise
            continue  # a place that was guessed may have anything
        if metadata is None and encoder.num_features == features:
            return encoder
        if metadata is not None and encoder_checksum(encoder) == metadata.checksum:
            return encoder
    problem = f"the encoder for {where} is missing"
    if places:
        given = places[0].name if isinstance(places[0], Encoder) else places[0]
        problem = f"{given} is not the encoder that made {where}"
    if metadata:
        problem += f" (made by {metadata.name}, {metadata.size} px, of {metadata.run})"
    raise StepclrError(f"{problem}; pass the run that made it: run=RUN")
