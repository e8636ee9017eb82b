"""Which images of an index to label next: the ones that represent most of the images not yet covered by a label."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from threadpoolctl import threadpool_limits
from torch import Tensor

from stepclr.data.label_csv import Section, check_found, read_labels
from stepclr.errors import check_whole
from stepclr.evaluation.linear import principal_axes, standardize
from stepclr.evaluation.solver import solve
from stepclr.tools.curate.table import Table
from stepclr.tools.search.index import EmbeddingIndex, open_index

BLOCK = 1000  # rows compared with all others at a time
TEMPERATURE = 0.1  # how fast similarity falls with distance: exp((cosine - 1) / T)
MAX_CANDIDATES = 5000  # images among which to choose; of more, a random subset
Tables = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None  # one with labels, or several
L2 = 0.1  # of the linear layer that estimates uncertainty: with one label per class, no folds can choose it


@dataclass(frozen=True)
class Suggestions:
    """Images of an index to label, the most informative first.

    Attributes:
        indices: int64 `[m]`.
        uncertainty: `[m]`, of the class of each image, 0 to 1; 1 while fewer than two classes have labels.
        index: the index, with all labels that were given.
    """

    indices: Int64[np.ndarray, " m"]
    uncertainty: Float[np.ndarray, " m"]
    index: EmbeddingIndex

    def table(self) -> Table:
        """A row per image, with an empty label for the user to fill in; all of them in one contact sheet."""
        rows, cells = [], []
        for rank, (i, unsure) in enumerate(zip(self.indices.tolist(), self.uncertainty.tolist(), strict=True), 1):
            rows.append((self.index.paths[i], "", rank, round(unsure, 4)))
            cells.append((i, f"{rank}  unsure {unsure:.2f}"))
        known = self.index.labels[self.index.labels >= 0]
        status = "none has a label yet"
        if len(known):
            status = f"{len(known):,} have a label, of {len(np.unique(known)):,} classes"
        summary = f"{len(rows):,} of {len(self.index):,} images to label next; {status}"
        return Table(("path", "label", "rank", "uncertainty"), rows, [cells] if cells else [], summary)


def suggest_labels(
    index: str | os.PathLike[str] | EmbeddingIndex,
    n: int = 50,
    labels: Tables = (),
    seed: int = 0,
) -> Suggestions:
    """The `n` images of an index to label next, by `choose_images`; all without a label if there are fewer.

    Args:
        index: what `stepclr embed` wrote, or an `EmbeddingIndex`.
        labels: a table (.csv, .tsv, .parquet), or several, with the columns path and label, or others of the usual
            names, whose labels are added to the index's own; an empty label changes nothing. `stepclr find next` writes
            one to fill in.
        seed: of the random subset of a large index.

    Raises StepclrError if a file cannot be read, names an image that is not in the index, or gives one two labels.
    """
    check_whole("n", n, 1)
    check_whole("seed", seed, 0)
    index = open_index(index)
    index = with_labels(index, labels)
    return Suggestions(*choose_images(index.vectors, index.labels, n, seed), index)


def choose_images(
    h: Float[np.ndarray, "n features"], labels: Int64[np.ndarray, " n"], n: int, seed: int = 0
) -> tuple[Int64[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The `n` images without a label (-1) to label next, the most informative first, and their uncertainty.

    Greedy facility location: each choice adds most to sum_j w_j max_i exp((cos(h_i, h_j) - 1) / T) over the images i
    that are labeled or chosen: typical images first, and never two for the same others. w_j is 1; once two classes
    have labels it is the square root of the uncertainty of image j: 1 - (p_first - p_second) by a linear layer on h.
    Choosing fewer gives the beginning of choosing more. More than MAX_CANDIDATES images without a label are sampled by
    `seed`; what `n` asks for beyond the sample follows in random order.
    """
    known = np.flatnonzero(labels >= 0)
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(labels < 0))
    candidates = np.sort(drawn[:MAX_CANDIDATES])
    uncertainty = np.ones(len(h))
    if len(np.unique(labels[known])) > 1:
        uncertainty = class_uncertainty(h, labels)
    # Unit rows, centered and scaled to unit norm again: all h of an encoder point in much the same direction.
    x = F.normalize(torch.from_numpy(h).float(), dim=1)
    x = F.normalize(x - x.mean(0), dim=1)
    covered = torch.zeros(len(candidates))  # by the labeled images already
    for start in range(0, len(known), BLOCK):
        some = known[start : start + BLOCK]
        covered = torch.maximum(covered, _similarity(x[some], x[candidates]).amax(0))
    weights = torch.from_numpy(uncertainty[candidates]).float().sqrt()
    chosen = candidates[_facilities(_similarity(x[candidates], x[candidates]), covered, weights, n)]
    chosen = np.concatenate([chosen, drawn[MAX_CANDIDATES:n]])
    return chosen, uncertainty[chosen]


def class_uncertainty(h: Float[np.ndarray, "n features"], labels: Int64[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 minus the margin between the two likeliest classes, by logistic regression on the labeled rows."""
    known = labels >= 0
    _, classes = np.unique(labels[known], return_inverse=True)
    with threadpool_limits(1, "blas"):
        x, every = standardize(h[known], h)
        x, basis = principal_axes(x)
        layer = solve(x, classes, np.full((len(x), 1), 1 / len(x)), L2)
    likeliest = torch.from_numpy(layer.logits(every @ basis)[:, 0]).softmax(1).topk(2).values
    return (1 - (likeliest[:, 0] - likeliest[:, 1])).numpy()


def paths_of(tables: Tables) -> list[Path]:
    """The path of one table, or of several."""
    return [Path(tables)] if isinstance(tables, str | os.PathLike) else list(map(Path, tables or ()))


def with_labels(index: EmbeddingIndex, tables: Tables) -> EmbeddingIndex:
    """The index with the labels of tables, one or several, which `read_labels` describes."""
    files = paths_of(tables)
    if not files:
        return index
    labels, classes = index.labels.copy(), list(index.classes)
    root = index.source if isinstance(index.source, str) and os.path.isdir(index.source) else None
    given = read_labels(files, [Section(index.paths, 0, root)], "the index")
    check_found(given, "the index")
    for i, row in given.rows.items():
        if row.label and row.label not in classes:
            classes.append(row.label)
        if row.label:
            labels[i] = classes.index(row.label)
    return replace(index, labels=labels, classes=classes)


def _facilities(
    similarity: Float[Tensor, "n n"], covered: Float[Tensor, " n"], weights: Float[Tensor, " n"], most: int
) -> list[int]:
    """The greedy choice, evaluated lazily (Minoux 1978): gains only shrink, so that few must be computed again."""
    gains = torch.cat([(rows - covered).clamp(min=0) @ weights for rows in similarity.split(BLOCK)])
    chosen: list[int] = []
    while len(chosen) < min(most, len(similarity)):
        best = int(gains.argmax())
        gains[best] = (similarity[best] - covered).clamp(min=0) @ weights
        if int(gains.argmax()) == best:
            covered = torch.maximum(covered, similarity[best])
            gains[best] = -torch.inf
            chosen.append(best)
    return chosen


def _similarity(x: Float[Tensor, "n features"], y: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
    return ((x @ y.T - 1) / TEMPERATURE).exp_()
