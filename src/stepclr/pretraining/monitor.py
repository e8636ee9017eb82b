"""What is measured while training: metrics of a batch's projections, and kNN of h. Labels never touch the training."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stepclr.data.images import ImageSet
from stepclr.data.labels import split_folders
from stepclr.data.order import epoch_order
from stepclr.device import dtype_of
from stepclr.distributed import ALONE, World
from stepclr.loss.contrastive import own_class
from stepclr.loss.objectives import Objective
from stepclr.metrics import FEW, alignment, contrastive_top1, effective_rank, uniformity, weighted_knn
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent

BANK, QUERIES = 4000, 1000  # enough to see a trend, and cheap compared with an epoch
RANK_IMAGES = 1000  # of the queries, then the bank: the effective rank grows with their number, so runs share one


def batch_metrics(
    objective: Objective, z: list[Float[Tensor, "n d"]], labels: Int64[Tensor, " n"], world: World
) -> dict[str, float]:
    """Metrics of the first two views of a batch; for logits, the top-1 of the labeled images."""
    sizes = world.sizes(len(labels))
    labels = world.gather(labels, sizes)
    z = [world.gather(projections, sizes) for projections in z]
    if objective.contrastive:
        z_i, z_j = z[:2]
        values = {
            "contrastive_top1": contrastive_top1(z_i, z_j),
            "alignment": alignment(z_i, z_j),
            "uniformity": uniformity(torch.cat([z_i, z_j])),
        }
        # One transfer for all three: each transfer makes the host wait for the GPU.
        numbers = torch.stack([value.double() for value in values.values()]).tolist()
        positives = _mean_positives(labels) if objective.needs_labels else 1.0
        negatives = len(z) * (len(labels) - positives)
        return {**dict(zip(values, numbers, strict=True)), "negatives": negatives}
    known = labels >= 0
    if objective.needs_teacher or not bool(known.any()):
        return {}
    return {"top1": (z[0].argmax(1) == labels)[known].double().mean().item()}


def _mean_positives(labels: Int64[Tensor, " n"]) -> float:
    """How many images of the batch share an image's class, itself included, on average; -1 is its own class."""
    classes = own_class(labels, torch.arange(len(labels), device=labels.device))
    _, counts = classes.unique(return_counts=True)
    return 1 + float((counts * (counts - 1)).sum()) / len(labels)


class Monitor:
    """A fixed split of labeled images into a bank (4 of 5) and held-out queries, scored by weighted kNN.

    With fewer than FEW (metrics.py) queries, each fifth of the images is held out in its turn.
    """

    def __init__(self, images: ImageSet) -> None:
        labeled = np.flatnonzero(images.labels >= 0)
        labeled = labeled[epoch_order(0, 0, len(labeled))]
        cut = max(1, min(len(labeled) // 5, QUERIES))
        self.queries, self.bank = images.take(labeled[:cut]), images.take(labeled[cut : cut + BANK])

    @staticmethod
    def can_watch(images: ImageSet) -> bool:
        """Whether there are labeled images of at least two classes, enough for a bank and a query."""
        labels = images.labels[images.labels >= 0]
        return len(labels) >= 10 and len(np.unique(labels)) > 1 and not split_folders(images)

    def __call__(self, encoder: Encoder, precision: str, world: World = ALONE) -> dict[str, float]:
        """Top-1 of `knn_images`, and the effective rank of h of `effective_rank_images`, at the run's own precision."""
        dtype = dtype_of(precision)
        bank, bank_rows = represent(encoder, self.bank, dtype, world=world)
        h, rows = represent(encoder, self.queries, dtype, world=world)
        labels = torch.from_numpy(np.concatenate([self.queries.labels[rows], self.bank.labels[bank_rows]]))
        fold = torch.arange(len(labels)) // max(1, len(rows))  # the queries are fold 0
        folds = int(fold.max()) + 1 if len(rows) < FEW else 1
        h = torch.cat([h, bank])
        correct = []
        for k in range(folds):
            held_out = fold == k
            predicted = weighted_knn(h[~held_out], labels[~held_out], h[held_out])
            correct.append(predicted == labels[held_out])
        ranked = h[:RANK_IMAGES]
        return {
            "knn": torch.cat(correct).double().mean().item(),
            "knn_images": sum(map(len, correct)),
            "effective_rank": effective_rank(ranked),
            "effective_rank_images": len(ranked),
        }
