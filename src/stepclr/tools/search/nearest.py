"""Which rows point most nearly the way of a query: exact, or approximate where there are many.

Up to EXACT rows every cosine is computed. A folder with more gets an IVF-SQ index of LanceDB's: vectors in 8 bits, in
cells of about CELL rows, of which the PROBES nearest are looked through; the best REFINED times k are compared anew at
full precision, so that a similarity is exact even there. `benchmarks/search.py` measures time and recall.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from stepclr.tools.search.index import needed, reading, vectors_of

EXACT = 50_000  # rows
CELL, PROBES, REFINED = 1000, 40, 5  # with 20 probes of a million rows recall is 0.90, with 30 it is 0.999
ROUNDS, TAUGHT = 20, 64  # of k-means, and rows a cell that it learns from: with twice as many recall stays the same
SAMPLED, AT = 100, 10  # rows that recall is measured on, and at which rank
GROWN = 1.5  # times as many rows as there were when the cells were laid out: they are laid out anew
ANN = "vector_idx"


def exact(
    queries: Float[Tensor, "q features"], blocks: Iterable[Float[Tensor, "_ features"]], k: int
) -> tuple[Float[Tensor, "q found"], Int64[Tensor, "q found"]]:
    """The `k` largest cosines of each query to the rows of all blocks, and which rows; fewer where there are fewer.

    Of equal cosines the first row's comes first. The cosine to a vector of length 0 is 0.
    """
    queries = F.normalize(queries)
    best, rows, begin = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64), 0
    for block in blocks:
        cosines = queries @ F.normalize(block).T
        numbers = torch.arange(begin, begin + len(block)).expand(len(queries), -1)
        best, rows = torch.cat([best, cosines], 1), torch.cat([rows, numbers], 1)
        at = best.argsort(dim=1, descending=True, stable=True)[:, :k]
        best, rows, begin = best.gather(1, at), rows.gather(1, at), begin + len(block)
    return best, rows


def approximate(table: Any, query: Float[np.ndarray, " features"], k: int, columns: Sequence[str]) -> Any:
    """The `k` rows of a LanceDB table most like a query, as an Arrow table with `_distance`, 1 - cosine."""
    asked = table.search(query, vector_column_name="vector").distance_type("cosine").limit(k)
    probes = max(PROBES, 5 * k * REFINED // CELL)
    return asked.nprobes(probes).refine_factor(REFINED).select([*columns, "_distance"]).to_arrow()


def lay_out(table: Any, where: Path, laid_out: int) -> tuple[float | None, int]:
    """Tidy a table that has changed, and above EXACT rows index it.

    laid_out: how many rows there were when the cells were last laid out. Returns the recall at 10 and that number.
    """
    with reading(where):
        _tidy(table)
        rows = table.count_rows()
        if rows <= EXACT:
            return None, 0
        if ANN not in [index.name for index in table.list_indices()] or rows > GROWN * laid_out:
            how = needed("lancedb.index").IvfSq(
                distance_type="cosine", num_partitions=max(1, rows // CELL), max_iterations=ROUNDS, sample_rate=TAUGHT
            )
            table.create_index("vector", config=how, replace=True, name=ANN)
            laid_out = rows
            _tidy(table)
        return recall_at_10(table, where), laid_out


def recall_at_10(table: Any, where: Path) -> float:
    """Which share of the 10 nearest the approximate search finds, on SAMPLED rows, each without itself.

    One that is as near as the tenth counts as found: images may be there twice.
    """
    rows, features = int(table.count_rows()), int(table.schema.field("vector").type.list_size)
    some = np.sort(np.random.default_rng(0).choice(rows, min(SAMPLED, rows), replace=False))
    asked = table.take_offsets(some.tolist()).select(["id", "vector"]).to_arrow()
    queries = vectors_of(asked["vector"].chunks, features, where)
    blocks = (
        torch.from_numpy(vectors_of([batch["vector"]], features, where))
        for batch in table.search().select(["vector"]).to_batches(8192)
    )
    cosines, _ = exact(torch.from_numpy(queries), blocks, AT + 1)
    least = cosines[:, -1] - 1e-6
    right, most = 0, min(AT, rows - 1)
    for own, query, bar in zip(asked["id"].to_pylist(), queries, least.tolist(), strict=True):
        found = approximate(table, query, AT + 1, ["id"])
        others = [
            d for name, d in zip(found["id"].to_pylist(), found["_distance"].to_pylist(), strict=True) if name != own
        ]
        right += sum(1 - float(distance) >= bar for distance in others[:AT])
    return right / (len(queries) * most)


def _tidy(table: Any) -> None:
    """Small files become large ones, new rows go into the index, and what no version needs any more is removed."""
    # A process that was killed may have left files that belong to no version: nobody else writes here now.
    table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)
