"""Which labels of an index may be wrong: those that a classifier fitted to the other labels finds improbable."""

import os
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from stepclr.errors import StepclrError, check_whole
from stepclr.evaluation.linear import FOLDS, principal_axes, standardize
from stepclr.evaluation.solver import solve
from stepclr.evaluation.splits import folds
from stepclr.metrics import in_percent
from stepclr.tools.curate.suggest import Tables, with_labels
from stepclr.tools.curate.table import Table
from stepclr.tools.search.index import EmbeddingIndex, open_index

L2 = 0.01  # of the linear layer; choosing it on folds takes much longer and finds no more
SUSPICIOUS = 0.2  # times 1/C: a label with less probability is suspected to be wrong
WEAK = 0.7  # of the labels predicted: where fewer are, rather the predictions are wrong


@dataclass(frozen=True)
class Mislabeled:
    """Labels of an index that differ from the prediction for their image, the most doubtful first.

    Attributes:
        indices: int64 `[m]`, of the images.
        scores: float64 `[m]`, the probability of the label that the image has.
        suggested: int64 `[m]`, the likeliest class.
        suggested_scores: float64 `[m]`, its probability.
        suspected: how many labels have a probability below SUSPICIOUS/C.
        agreement: the share of the checked labels that are predicted; the lower it is, the less a doubt means.
        checked: how many labels were checked; the only label of a class cannot be.
        index: the index, with all labels that were given.
    """

    indices: Int64[np.ndarray, " m"]
    scores: Float[np.ndarray, " m"]
    suggested: Int64[np.ndarray, " m"]
    suggested_scores: Float[np.ndarray, " m"]
    suspected: int
    agreement: float
    checked: int
    index: EmbeddingIndex

    def table(self) -> Table:
        """A row per image; all of them in one contact sheet."""
        rows, cells = [], []
        for rank, i in enumerate(self.indices.tolist()):
            label, suggested = self.index.class_name(i) or "", self.index.classes[self.suggested[rank]]
            scores = round(self.scores[rank].item(), 4), round(self.suggested_scores[rank].item(), 4)
            rows.append((self.index.paths[i], label, suggested, *scores))
            cells.append((i, f"{label} -> {suggested}"))
        agreeing = in_percent(self.agreement)
        summary = (
            f"{self.suspected:,} of {self.checked:,} labels are suspected to be wrong; {agreeing} agree with the "
            f"prediction for their image; listing the {len(rows):,} most doubtful"
        )
        if self.agreement < WEAK:
            summary += ". The predictions are weak: if most labels are right, most of these suspicions are wrong"
        header = ("path", "label", "suggested", "score", "suggested_score")
        return Table(header, rows, [cells] if cells else [], summary)


def find_mislabeled(
    index: str | os.PathLike[str] | EmbeddingIndex,
    n: int = 50,
    labels: Tables = (),
    seed: int = 0,
) -> Mislabeled:
    """The `n` most doubtful labels of an index, by the self-confidence of confident learning (1911.00068, section 3).

    A label is doubtful where it is not the likeliest class by `held_out_probabilities`; the least probable come first.
    The paper's count of wrong labels, by the confident joint, is not used: it is several times too large where the
    classifier is weak.

    Args:
        index: what `stepclr embed` wrote, or an `EmbeddingIndex`.
        labels: tables whose labels are added to the index's own, as in `suggest_labels`.
        seed: of the folds.

    Raises StepclrError if a file cannot be read, or if fewer than two classes have labels, or none has two.
    """
    check_whole("n", n, 1)
    check_whole("seed", seed, 0)
    index = with_labels(open_index(index), labels)
    known = np.flatnonzero(index.labels >= 0)
    classes, y = np.unique(index.labels[known], return_inverse=True)
    if len(classes) < 2 or len(known) == len(classes):
        raise StepclrError(
            "labels can be checked where there are two classes or more, and two labels of a class; the index has "
            f"{len(known):,} labeled images of {len(classes):,} classes; labels=FILE adds those of a table"
        )
    p = held_out_probabilities(index.vectors[known], y, seed % 2**32)
    checked = np.flatnonzero(~np.isnan(p[:, 0]))
    known, y, p = known[checked], y[checked], p[checked]
    given, likeliest = p[np.arange(len(y)), y], p.argmax(1)
    order = np.argsort(given, kind="stable")
    order = order[likeliest[order] != y[order]][:n]
    return Mislabeled(
        known[order],
        given[order],
        classes[likeliest[order]],
        p.max(1)[order],
        int((given < SUSPICIOUS / len(classes)).sum()),
        float((likeliest == y).mean()),
        len(y),
        index,
    )


def held_out_probabilities(
    h: Float[np.ndarray, "n features"], labels: Int64[np.ndarray, " n"], seed: int = 0
) -> Float[np.ndarray, "n classes"]:
    """The probability of each class for each row, by a linear layer on h that was fitted without this row's fold.

    Labels are 0 ... C-1, each present. The only row of a class is in no fold: its probabilities are NaN.
    """
    p = np.full((len(h), int(labels.max()) + 1), np.nan)
    with threadpool_limits(1, "blas"):
        x, _ = standardize(h, h[:0])
        x, _ = principal_axes(x)
        for rows, held_out in folds(labels, FOLDS, seed):
            layer = solve(x[rows], labels[rows], np.full((len(rows), 1), 1 / len(rows)), L2)
            p[held_out] = softmax(layer.logits(x[held_out])[:, 0], axis=1)
    return p
