"""An image -> the images of an index most like it, by the encoder that made the index."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from stepclr.data.decode import UnreadableError, decode, reasons, reduced, source_side, upright_rgb
from stepclr.data.sources import open_images
from stepclr.device import default_device
from stepclr.errors import StepclrError, choose
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.model.files import FILE, load_encoder
from stepclr.tools.embed import DTYPES
from stepclr.tools.search import nearest
from stepclr.tools.search.index import (
    COLUMNS,
    Index,
    Made,
    checksum_of,
    from_text,
    made_of,
    open_index,
    open_table,
    reading,
)

Query = str | os.PathLike[str] | Image.Image | UInt8[Tensor, "3 h w"]


@dataclass(frozen=True)
class Hit:
    """An image that was found; label: its class, None where it has none; similarity: the cosine of both h."""

    path: str
    label: str | None
    similarity: float
    thumbnail: bytes


def search(
    index: str | os.PathLike[str], query: Query, k: int = 12, run: str | os.PathLike[str] | None = None
) -> list[Hit]:
    """The `k` images of an index most like a query, by the cosine of their representations h; `Search` in one call.

    Args: index: what `stepclr embed` wrote. query: an image file, a PIL image or uint8 `[3, H, W]`. run: as of
    `Search`. Raises StepclrError as `Search` does, and where the query cannot be read.
    """
    return Search(index, run)(query, k)


class Search:
    """An index opened for many queries.

    Args: index: what `stepclr embed` wrote: a folder, a .parquet or an .npz. run: the run that made it, or its encoder
    file; by default the copy in the folder, for a file the `encoder.safetensors` beside it or the run it was made by.

    Attributes: rows: images in the index. approximate: whether not every row is compared; recall: at 10, where it was
    measured. thumbnails: whether hits have some.

    Raises StepclrError where there is no index or it is damaged, and where its encoder is not found or is another one.
    """

    def __init__(self, index: str | os.PathLike[str], run: str | os.PathLike[str] | None = None) -> None:
        self.where = Path(index)
        self.made = made_of(self.where)
        self._table: Any = None
        self._index: Index | None = None
        if self.where.is_dir():
            _, self._table = open_table(self.where)
            with reading(self.where):
                self.rows = int(self._table.count_rows())
        if self._table is None or self.rows <= nearest.EXACT:
            self._index, self._table = open_index(self.where), None
            self.rows = len(self._index)
        self.approximate, self.thumbnails = self._index is None, self.made is not None
        self.recall = self.made.recall if self.made else None
        width = self._index.vectors.shape[1] if self._index else 0
        self.encoder = _encoder(self.where, self.made, width, run).to(default_device())

    def __call__(self, query: Query, k: int = 12) -> list[Hit]:
        """The `k` nearest, the most alike first; all there are where they are fewer."""
        return self.nearest(self.represent(read_query(query, self.encoder)), k)

    def represent(self, image: UInt8[Tensor, "3 h w"]) -> Float[Tensor, " features"]:
        """h of an image, computed as that of the index's images was."""
        precision = self.made.precision if self.made else "fp32"
        h, _ = represent(self.encoder, open_images(image[None]), DTYPES[choose("precision", precision, DTYPES)])
        return h[0]

    def nearest(self, h: Float[Tensor, " features"], k: int = 12) -> list[Hit]:
        """`__call__` of a query whose h is known."""
        if k < 1:
            raise StepclrError(f"-k must be at least 1 image, not {k}")
        if self._index is None:
            with reading(self.where):
                found = nearest.approximate(self._table, h.numpy(), min(k, self.rows), COLUMNS[1:]).to_pylist()
                return [_hit(row) for row in found]
        cosines, rows = nearest.exact(h[None], [torch.from_numpy(self._index.vectors)], k)
        return [self._hit(self._index, *found) for found in zip(rows[0].tolist(), cosines[0].tolist(), strict=True)]

    @staticmethod
    def _hit(index: Index, row: int, cosine: float) -> Hit:
        label = int(index.labels[row])
        return Hit(
            index.paths[row],
            None if label < 0 else index.classes[label],
            cosine,
            index.thumbnails[row] if index.thumbnails else b"",
        )


def read_query(query: Query, encoder: Encoder) -> UInt8[Tensor, "3 h w"]:
    """A query's pixels, reduced as an index's images are before the encoder sees them."""
    if isinstance(query, Tensor):
        return reduced(query, source_side(encoder.size))
    if isinstance(query, Image.Image):
        return reduced(upright_rgb(query), source_side(encoder.size))
    path = Path(query)
    if not path.is_file():
        raise StepclrError(f"{path} is no image file" if path.exists() else f"{path} does not exist")
    try:
        with reasons(), path.open("rb") as file:
            return decode(file, source_side(encoder.size))
    except UnreadableError as why:
        raise StepclrError(f"{path} cannot be read: {why}") from why


def _hit(row: dict[str, Any]) -> Hit:
    label = row["label"]
    return Hit(
        from_text(row["path"]),
        None if label is None else from_text(label),
        1 - row["_distance"],
        row["thumbnail"] or b"",
    )


def _encoder(where: Path, made: Made | None, width: int, run: str | os.PathLike[str] | None) -> Encoder:
    """The encoder that made an index: the first place where one is that fits."""
    beside = (where if where.is_dir() else where.parent) / FILE
    places = [Path(run)] if run else [beside, *([Path(made.run)] if made and not where.is_dir() else [])]
    there = [place for place in places if place.exists()] or [place for place in places if run]
    for place in there:
        encoder = load_encoder(place)
        if checksum_of(encoder) == made.checksum if made else encoder.num_features == width:
            return encoder
    of = f": it was made by {made.name}, {made.size} px, of {made.run}" if made else ""
    if there:
        raise StepclrError(f"{there[0]} is not the encoder that made {where}{of}; --run RUN names that")
    raise StepclrError(f"{where} is without its encoder{of}; --run RUN names the run that made it")
