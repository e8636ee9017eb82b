"""The kNN score while training: does h separate the classes? Labels only watch; they never touch the training."""

import numpy as np
import torch

from stepclr.data.images import ImageSet
from stepclr.data.order import epoch_order
from stepclr.distributed import ALONE, World
from stepclr.metrics import effective_rank, weighted_knn
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent

BANK, QUERIES = 4000, 1000  # enough to see a trend, small beside an epoch


class Monitor:
    """A fixed split of labelled images into a bank (4 of 5) and held-out queries, scored by weighted kNN."""

    def __init__(self, images: ImageSet) -> None:
        labelled = np.flatnonzero(images.labels >= 0)
        labelled = labelled[epoch_order(0, 0, len(labelled))]
        cut = max(1, min(len(labelled) // 5, QUERIES))
        self.queries, self.bank = images.take(labelled[:cut]), images.take(labelled[cut : cut + BANK])

    @staticmethod
    def can_watch(images: ImageSet) -> bool:
        """Whether there are labelled images of at least two classes, enough for a bank and a query."""
        labels = images.labels[images.labels >= 0]
        return len(labels) >= 10 and len(np.unique(labels)) > 1

    def __call__(self, encoder: Encoder, precision: str, world: World = ALONE) -> dict[str, float]:
        """Top-1 of the queries and the effective rank of their h, at the run's own precision."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        bank, bank_rows = represent(encoder, self.bank, dtype, world=world)
        h, rows = represent(encoder, self.queries, dtype, world=world)
        predicted = weighted_knn(bank, torch.from_numpy(self.bank.labels[bank_rows]), h)
        truth = torch.from_numpy(self.queries.labels[rows])
        return {"knn": (predicted == truth).double().mean().item(), "effective_rank": effective_rank(h)}
