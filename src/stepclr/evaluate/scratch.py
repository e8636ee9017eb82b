"""The baseline `scratch`: the same network, trained with the labelled draw alone, all of it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stepclr.data import ImageSet
from stepclr.evaluate.baselines import fresh
from stepclr.evaluate.draws import Budget, Draw, Rows, folds
from stepclr.evaluate.linear import Fit
from stepclr.evaluate.material import features
from stepclr.model import Encoder
from stepclr.pretrain.feed import Batch, batches
from stepclr.pretrain.optimizer import rate_at
from stepclr.views import Views, view_keys

RATES = (0.01, 0.03, 0.1)
ONE_LABEL = 0.03  # rate at one label a class, where nothing is left to choose it on
BATCH, MOMENTUM, WEIGHT_DECAY = 32, 0.9, 5e-4


@dataclass(frozen=True)
class Scratch:
    """Supervised training from scratch. Called with a draw, it predicts the classes of `test`.

    steps: of training, of 32 pictures. min_area: smallest crop, share of the picture. bf16: train under autocast.
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
            "supervised training of": "the same encoder and a linear classifier, a new initialisation a draw",
            "views": f"crop (area from {self.min_area}) and flip",
            "steps": self.steps,
            "batch": BATCH,
            "optimizer": f"SGD, Nesterov momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, cosine per step to 0",
            "precision": "bf16" if self.bf16 else "fp32",
            "tested": "eval mode, float32, centre crop",
            "rates": list(RATES),
            "rate_chosen_by": "top-1, then log-loss, on 2 stratified folds of the first draw, once a budget",
            "rate_at_1_label": ONE_LABEL,
        }

    def __call__(self, draw: Draw) -> Fit:
        if draw.budget not in self.rates:  # draws come in order, so this is the budget's first
            self.rates[draw.budget] = self.choose_rate(draw)
        rate = self.rates[draw.budget]
        logits = self.logits(self.fit(draw.rows, rate, draw.seed), self.test)
        return Fit(logits.argmax(1).numpy(), rate)

    def choose_rate(self, draw: Draw) -> float:
        """The rate that gets most held-out rows of two folds right; of several, the one of least log-loss."""
        parts = folds(self.train.labels[draw.rows], 2, draw.seed)

        def merit(rate: float) -> tuple[int, float]:
            right, loss = 0, 0.0
            for rows, held_out in ((draw.rows[part[0]], draw.rows[part[1]]) for part in parts):
                logits = self.logits(self.fit(rows, rate, draw.seed), self.train.take(held_out))
                truth = torch.from_numpy(self.train.labels[held_out])
                right += int((logits.argmax(1) == truth).sum())
                loss += float(F.cross_entropy(logits, truth, reduction="sum"))
            return right, -loss if math.isfinite(loss) else -math.inf

        return max(RATES, key=merit) if parts else ONE_LABEL

    def fit(self, rows: Rows, rate: float, seed: int) -> nn.Sequential:
        """Encoder and linear classifier trained on these rows of train; a function of the arguments."""
        device = self.encoder.mean.device
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            classifier = nn.Linear(self.encoder.num_features, int(self.train.labels.max()) + 1)
        model = nn.Sequential(fresh(self.encoder, seed), classifier)
        model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
        views = Views("crop", size=self.encoder.size, min_area=self.min_area, views=1)
        labels = torch.from_numpy(self.train.labels[rows])
        for step, (epoch, (pictures, at)) in enumerate(islice(_endless(self.train.take(rows), seed), self.steps)):
            optimizer.param_groups[0]["lr"] = rate_at(step, self.steps, 0, rate)
            x = views(pictures, view_keys(seed, epoch, at))[0].to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels[at].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model

    def logits(self, model: nn.Sequential, images: ImageSet) -> Float[Tensor, "n c"]:
        """In eval mode, float32, on the centre crop."""
        encoder, classifier = model
        assert isinstance(encoder, Encoder)
        with torch.inference_mode():
            logits: Tensor = classifier.cpu()(torch.from_numpy(features(encoder, images)))
        return logits


def _endless(images: ImageSet, seed: int) -> Iterator[tuple[int, Batch]]:
    for epoch in count():
        for batch in batches(images, seed, epoch, BATCH, start=0):
            yield epoch, batch
