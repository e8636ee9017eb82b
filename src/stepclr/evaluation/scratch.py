"""The baseline `scratch`: the same network, trained with the labelled draw alone, all of it."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from stepclr.data.images import ImageSet
from stepclr.evaluation.baselines import fresh
from stepclr.evaluation.init_from import Start
from stepclr.evaluation.linear import Fit
from stepclr.evaluation.prepare import all_logits
from stepclr.evaluation.splits import Budget, Draw, Rows, folds
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.pretraining.classifier import MOMENTUM, Supervised, train_classifier

RATES = (0.01, 0.03, 0.1)
ONE_LABEL = 0.03  # rate at one label a class, where nothing is left to choose it on
BATCH, WEIGHT_DECAY = 32, 5e-4


@dataclass(frozen=True)
class Scratch:
    """Supervised training from scratch. Called with a draw, it predicts the classes of `test`.

    steps: of training, of 32 images. min_area: smallest crop, share of the image. bf16: train under autocast.
    """

    encoder: Encoder
    train: ImageSet
    test: ImageSet
    steps: int
    min_area: float
    bf16: bool
    rates: dict[Budget, float] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What a reader of the score has to know."""
        return {
            "supervised training of": "the same encoder and a linear classifier, a new initialization a draw",
            "views": f"crop (area from {self.min_area}) and flip",
            "steps": self.steps,
            "batch": BATCH,
            "optimizer": f"SGD, Nesterov momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, cosine per step to 0",
            "precision": "bf16" if self.bf16 else "fp32",
            "tested": "eval mode, float32, center crop",
            "rates": list(RATES),
            "rate_chosen_by": "top-1, then log-loss, on 2 stratified folds of the first draw, once a budget",
            "rate_at_1_label": ONE_LABEL,
        }

    def __call__(self, draw: Draw) -> Fit:
        if draw.budget not in self.rates:  # draws come in order, so this is the budget's first
            self.rates[draw.budget] = self.choose_rate(draw)
        rate = self.rates[draw.budget]
        logits = all_logits(self.fit(draw.rows, rate, draw.seed), self.test)
        return Fit(logits.argmax(1).numpy(), rate)

    def choose_rate(self, draw: Draw) -> float:
        """The rate that gets most held-out rows of two folds right; of several, the one of least log-loss."""
        parts = folds(self.train.labels[draw.rows], 2, draw.seed)

        def merit(rate: float) -> tuple[int, float]:
            right, loss = 0, 0.0
            for rows, held_out in ((draw.rows[part[0]], draw.rows[part[1]]) for part in parts):
                logits = all_logits(self.fit(rows, rate, draw.seed), self.train.take(held_out))
                truth = torch.from_numpy(self.train.labels[held_out])
                right += int((logits.argmax(1) == truth).sum())
                loss += float(F.cross_entropy(logits, truth, reduction="sum"))
            return right, -loss if math.isfinite(loss) else -math.inf

        return max(RATES, key=merit) if parts else ONE_LABEL

    def fit(self, rows: Rows, rate: float, seed: int) -> Classifier:
        """Encoder and linear layer trained on these rows of train; a function of the arguments."""
        how = Supervised(self.steps, BATCH, rate, self.min_area, self.bf16, weight_decay=WEIGHT_DECAY)
        classifier = Start(fresh(self.encoder, seed)).classifier(self.train.classes, seed)
        return train_classifier(classifier, self.train.take(rows), how, seed)
