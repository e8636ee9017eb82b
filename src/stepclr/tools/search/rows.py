"""The rows of an index: their columns, and the id by which a row is known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from stepclr.data.images import ImageSet
from stepclr.io import checksum_of
from stepclr.tools.search.index import as_text


def schema_of(features: int, id: bool = True) -> Any:
    """The columns of a table, or without `id` of a .parquet file."""
    import pyarrow as pa

    columns = [("vector", pa.list_(pa.float32(), features)), ("path", pa.string()), ("label", pa.string())]
    columns.append(("thumbnail", pa.binary()))
    if id:
        columns.insert(0, ("id", pa.string()))
    return pa.schema(columns)


def rows_of(
    source: ImageSet,
    indices: Int64[np.ndarray, " n"],
    h: Float32[np.ndarray, "n features"],
    thumbnails: list[bytes],
    ids: Sequence[str] | None = None,
) -> Any:
    """An Arrow table of images."""
    import pyarrow as pa

    names = [source.class_name(i) for i in indices.tolist()]
    columns = {
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(h.ravel()), h.shape[1]),
        "path": [as_text(source.names[i]) for i in indices.tolist()],
        "label": [None if name is None else as_text(name) for name in names],
        "thumbnail": thumbnails,
    }
    if ids is not None:
        columns["id"] = list(ids)
    return pa.table(columns, schema=schema_of(h.shape[1], id=ids is not None))


def ids_of(source: ImageSet) -> list[str]:
    """A checksum per image, of its path, its label and its bytes."""
    contents = source.store.checksums(source.rows)
    ids = []
    for i, (name, content) in enumerate(zip(source.names, contents, strict=True)):
        parts = (name, source.class_name(i) or "", content)
        ids.append(checksum_of("\0".join(map(as_text, parts)).encode()))
    return ids
