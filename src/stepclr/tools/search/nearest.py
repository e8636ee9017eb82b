"""Nearest neighbors of a query by cosine: exact, or approximate for large folders.

Up to EXACT_ROWS rows every cosine is computed. A larger folder gets an IVF-SQ index from LanceDB: vectors in 8 bits, in
cells of about CELL_ROWS rows, of which the PROBES nearest are searched; the best REFINE times k are compared again at
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

EXACT_ROWS = 50_000
CELL_ROWS, PROBES, REFINE = 1000, 40, 5  # of a million rows, recall is 0.90 with 20 probes and 0.999 with 30
KMEANS_ROUNDS, KMEANS_ROWS = 20, 64  # rows per cell to learn from: twice as many do not change recall
RECALL_QUERIES, RECALL_AT = 100, 10
GROWTH = 1.5  # the cells are partitioned again once there are this many times as many rows
ANN_INDEX = "vector_idx"


def exact(
    queries: Float[Tensor, "q features"], blocks: Iterable[Float[Tensor, "_ features"]], k: int
) -> tuple[Float[Tensor, "q found"], Int64[Tensor, "q found"]]:
    """The `k` largest cosines of each query to the rows of all blocks, and those rows; fewer if there are fewer.

    Of equal cosines the first row's comes first. The cosine with a vector of length 0 is 0. `metrics.nearest` promises
    no order among equal cosines, which copies of an image have, and needs all rows in memory; here a table of any size
    is read block by block.
    """
    queries = F.normalize(queries)
    cosines, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for block in blocks:
        numbers = torch.arange(start, start + len(block)).expand(len(queries), -1)
        cosines = torch.cat([cosines, queries @ F.normalize(block).T], 1)
        rows = torch.cat([rows, numbers], 1)
        best = cosines.argsort(dim=1, descending=True, stable=True)[:, :k]
        cosines, rows = cosines.gather(1, best), rows.gather(1, best)
        start += len(block)
    return cosines, rows


def approximate(table: Any, query: Float[np.ndarray, " features"], k: int, columns: Sequence[str]) -> Any:
    """The `k` rows of a LanceDB table nearest to a query, as an Arrow table with `_distance`, 1 - cosine."""
    search = table.search(query, vector_column_name="vector").distance_type("cosine").limit(k)
    probes = max(PROBES, 5 * k * REFINE // CELL_ROWS)
    return search.nprobes(probes).refine_factor(REFINE).select([*columns, "_distance"]).to_arrow()


def update_ann_index(table: Any, where: Path, partitioned_rows: int) -> tuple[float | None, int]:
    """Compact a changed table; above EXACT_ROWS, build its approximate index.

    partitioned_rows: how many rows there were when the cells were last partitioned. Returns the recall at 10, None if
    search is exact, and that number.
    """
    with reading(where):
        _compact(table)
        rows = table.count_rows()
        if rows <= EXACT_ROWS:
            return None, 0
        if ANN_INDEX not in [index.name for index in table.list_indices()] or rows > GROWTH * partitioned_rows:
            config = needed("lancedb.index").IvfSq(
                distance_type="cosine",
                num_partitions=max(1, rows // CELL_ROWS),
                max_iterations=KMEANS_ROUNDS,
                sample_rate=KMEANS_ROWS,
            )
            table.create_index("vector", config=config, replace=True, name=ANN_INDEX)
            partitioned_rows = rows
            _compact(table)
        return recall_at_10(table, where), partitioned_rows


def recall_at_10(table: Any, where: Path) -> float:
    """The share of the 10 nearest rows that approximate search finds, on RECALL_QUERIES rows, each without itself.

    A row as near as the tenth counts as found, because there may be copies.
    """
    rows, features = int(table.count_rows()), int(table.schema.field("vector").type.list_size)
    drawn = np.sort(np.random.default_rng(0).choice(rows, min(RECALL_QUERIES, rows), replace=False))
    sample = table.take_offsets(drawn.tolist()).select(["id", "vector"]).to_arrow()
    queries = vectors_of(sample["vector"].chunks, features, where)
    blocks = (
        torch.from_numpy(vectors_of([batch["vector"]], features, where))
        for batch in table.search().select(["vector"]).to_batches(8192)
    )
    cosines, _ = exact(torch.from_numpy(queries), blocks, RECALL_AT + 1)  # the nearest is the row itself
    tenth = cosines[:, -1] - 1e-6
    correct = 0
    for own_id, query, least in zip(sample["id"].to_pylist(), queries, tenth.tolist(), strict=True):
        hits = approximate(table, query, RECALL_AT + 1, ["id"])
        others = []
        for hit_id, distance in zip(hits["id"].to_pylist(), hits["_distance"].to_pylist(), strict=True):
            if hit_id != own_id:
                others.append(1 - float(distance))
        correct += sum(cosine >= least for cosine in others[:RECALL_AT])
    return correct / (len(queries) * min(RECALL_AT, rows - 1))


def _compact(table: Any) -> None:
    """Merge small files, add new rows to the ANN index, and delete what no version needs any more."""
    # A killed process may have left files that belong to no version, and nobody else is writing now.
    table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)
