"""What pretraining has to beat: raw pixels; the same network untrained, as training began, or trained from scratch."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stepclr.data.images import ImageSet
from stepclr.data.order import epoch_order
from stepclr.device import Each, seeded
from stepclr.errors import StepclrError, first_line
from stepclr.evaluation.init_from import InitialWeights
from stepclr.evaluation.prepare import all_logits
from stepclr.evaluation.results import Fit, ranking
from stepclr.evaluation.splits import Indices, LabelsPerClass, Split, folds
from stepclr.model.build import OWN_MODULE, build_encoder
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.timm_weights import timm_name
from stepclr.model.weights import load_weights
from stepclr.pretraining.classifier import AfterStep, Supervised, crop_words, train_classifier
from stepclr.pretraining.optim import MOMENTUM
from stepclr.pretraining.run import Run
from stepclr.threads import Progress, silent
from stepclr.views.policies import FLIP

START = "start"  # the row of the encoder as training began, where that was not a random initialization
MAX_SIDE = 32  # pixels; linear evaluation of more would only take longer
STATISTICS_IMAGES = 256
PIXELS = f"the encoder's center crop, reduced (antialiased) to at most {MAX_SIDE} px a side, flattened"
RANDOM = (
    "a new initialization for each draw; BatchNorm statistics of one batch, "
    f"{STATISTICS_IMAGES} random images of train (all, if there are fewer)"
)
RATES = (0.01, 0.03, 0.1)
RATE_AT_1_LABEL = 0.03  # with one label per class there is nothing left to choose the rate on
# A rate is chosen after an eighth of the steps, but at least MIN_TRIAL: on the sample, all steps choose the same one.
TRIAL, MIN_TRIAL = 8, 125
SCRATCH_BATCH, WEIGHT_DECAY = 32, 5e-4
Trial = tuple[Split, tuple[Indices, Indices], float]  # of a rate on one fold: the indices to fit on and held out


class _Pixels(nn.Module):
    """An image is its own representation."""

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.side, self.num_features = side, channels * side**2

    def forward(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n features"]:
        if x.shape[-1] != self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        return x.flatten(1)


def pixels(encoder: Encoder) -> Encoder:
    """An encoder whose h is the pixels of `encoder.preprocess`, so that both see the same crop."""
    body = _Pixels(min(MAX_SIDE, encoder.size), encoder.channels)
    plain = Encoder(body, "pixels", "own", encoder.size, channels=encoder.channels).preprocess_as(encoder)
    plain.represent_at(encoder.size)  # enlarged pixels say no more
    plain.mean.zero_()
    plain.std.fill_(1)
    return plain


def started_from(run: Run, encoder: Encoder) -> str | None:
    """The weights that training began with, a path or timm:NAME; None for a random initialization."""
    if timm_name(run) is not None:
        return None  # not trained here
    return run.config.weights if run.exists() else encoder.weights or None


def start_encoder(encoder: Encoder, weights: str) -> Encoder:
    """The encoder with the weights that its training began with, and its own preprocessing, in eval mode."""
    try:
        if timm_name(weights) is None:
            start = copy.deepcopy(encoder)
            load_weights(start, Path(weights))
        else:
            start = _built_like(encoder, weights)
    except StepclrError as error:
        raise StepclrError(
            f"the baseline {START} needs the weights that training began with (to leave it out: "
            f"baselines=pixels): {error}"
        ) from error
    return start.preprocess_as(encoder).eval()


def random_encoder(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture and preprocessing, newly initialized from `seed`; torch's generator is left alone."""
    with seeded(seed):
        own = encoder.name.startswith(OWN_MODULE)
        initialized = _initialized_again(encoder) if own else _built_like(encoder)
    return initialized.preprocess_as(encoder)


def _built_like(encoder: Encoder, weights: str | None = None) -> Encoder:
    """A new encoder of the same architecture."""
    name, stem, channels = encoder.name, encoder.stem, encoder.channels
    return build_encoder(name, stem, weights, encoder.size, encoder.normalize_h, channels=channels)


def _initialized_again(encoder: Encoder) -> Encoder:
    """A copy of a user's own module whose layers are initialized as torch does; StepclrError where one cannot be."""
    try:
        copied = copy.deepcopy(encoder).cpu()
    except RuntimeError as error:  # of a tensor that a hook has computed
        raise StepclrError(
            f"baselines random and scratch copy your own module, which fails: {first_line(error)}; leave them out"
        ) from error
    # What is not set again stays NaN. Such are the weights that a hook (weight_norm, spectral_norm) computes others of.
    with torch.no_grad():
        for parameter in filter(torch.is_floating_point, copied.body.parameters()):
            parameter.fill_(torch.nan)
    for name, layer in copied.body.named_modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
            has = "one that leaves some of its parameters as they are"
        else:
            has = "none"
        if any(parameter.isnan().any() for parameter in layer.parameters(recurse=False)):
            raise StepclrError(
                f"baselines random and scratch need layers with a method reset_parameters, and {name or 'the module'} "
                f"({type(layer).__name__}) of your own module has {has}; leave them out"
            )
    return copied


def set_batchnorm_statistics(encoder: Encoder, images: ImageSet) -> None:
    """Set every BatchNorm to the statistics of one batch of random `images`; leaves the encoder in eval mode.

    Without it a new network would normalize by mean 0 and variance 1, which its features do not have. The batch is the
    same for every network.
    """
    encoder.eval()
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the first batch counts whole
        norm.train()
    batch = images.read(epoch_order(0, 0, len(images))[:STATISTICS_IMAGES])
    with torch.inference_mode():
        encoder(encoder.preprocess(batch).contiguous(memory_format=torch.channels_last))
    encoder.eval()


def trial_steps(steps: int) -> int:
    """Of a training of so many steps: the steps, with a cosine of their own, after which its best rate shows."""
    return min(steps, max(MIN_TRIAL, steps // TRIAL))


@dataclass(frozen=True)
class Scratch:
    """Supervised training of a new network on a label split alone; called with one, it predicts the classes of `test`.

    steps: of training, with 32 images each. min_area: smallest crop, share of the image. bf16: train under autocast.
    flip: probability of mirroring.
    each: how networks that do not depend on each other are trained. rates: what `decide` chose.
    training, scoring: as those of `Task`, of this method.
    """

    encoder: Encoder
    train: ImageSet
    test: ImageSet
    steps: int
    min_area: float
    bf16: bool
    flip: float = FLIP
    each: Each = map
    training: Callable[[int], AfterStep] = lambda _: silent
    scoring: Callable[[], Progress] = lambda: silent
    rates: dict[LabelsPerClass, float] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The part of the protocol that describes this method."""
        return {
            "supervised training of": "the same encoder and a linear classifier, a new initialization for each draw",
            "views": crop_words(self.min_area, self.flip),
            "steps": self.steps,
            "batch": SCRATCH_BATCH,
            "optimizer": f"SGD, Nesterov momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, cosine per step to 0",
            "precision": "bf16" if self.bf16 else "fp32",
            "tested": "eval mode, float32, center crop",
            "rates": list(RATES),
            "rate_chosen_by": "top-1, then log-loss, on 2 stratified folds of the first draw for each labels_per_class",
            "rate_chosen_after_steps": trial_steps(self.steps),
            "rate_at_1_label": RATE_AT_1_LABEL,
        }

    def __call__(self, split: Split) -> Fit:
        rate = self.rates[split.labels_per_class]
        logits = all_logits(self.fit(split.indices, rate, split.seed, self.steps), self.test, self.scoring())
        return Fit(ranking(logits.numpy()), rate)

    def decide(self, splits: Sequence[Split]) -> None:
        """Choose a rate for each number of labels, on the first split with that number.

        It is the rate with the highest top-1 on held-out images of two folds; of equal ones, with the least log-loss.
        """
        firsts: dict[LabelsPerClass, Split] = {}
        for split in splits:
            firsts.setdefault(split.labels_per_class, split)
        trials = []
        for split in firsts.values():
            self.rates[split.labels_per_class] = RATE_AT_1_LABEL
            parts = folds(self.train.labels[split.indices], 2, split.seed)
            trials += [(split, part, rate) for rate in RATES for part in parts]

        # All trials at once, so that the last ones of one number of labels do not wait for the first ones of the next.
        merits = {(split.labels_per_class, rate): np.zeros(2) for split, _, rate in trials}
        for (split, _, rate), merit in zip(trials, self.each(self.merit, trials), strict=True):
            merits[split.labels_per_class, rate] += merit
        for per_class in dict.fromkeys(per_class for per_class, _ in merits):
            tried = {rate: tuple(merits[per_class, rate]) for rate in RATES}
            self.rates[per_class] = max(tried, key=tried.__getitem__)  # of equal rates, the first

    def merit(self, trial: Trial) -> tuple[int, float]:
        """How many held-out images are predicted right, and minus the sum of their log-losses."""
        split, (fitted, held_out), rate = trial
        held_out = split.indices[held_out]
        classifier = self.fit(split.indices[fitted], rate, split.seed, trial_steps(self.steps))
        logits = all_logits(classifier, self.train.take(held_out), self.scoring())
        truth = torch.from_numpy(self.train.labels[held_out])
        loss = float(F.cross_entropy(logits, truth, reduction="sum"))
        return int((logits.argmax(1) == truth).sum()), -loss if math.isfinite(loss) else -math.inf

    def fit(self, indices: Indices, rate: float, seed: int, steps: int) -> Classifier:
        """Encoder and linear layer trained on these images of train; a function of the arguments."""
        given = steps, SCRATCH_BATCH, rate, self.min_area, self.bf16
        settings = Supervised(*given, weight_decay=WEIGHT_DECAY, flip=self.flip)
        classifier = InitialWeights(random_encoder(self.encoder, seed)).classifier(self.train.classes, seed)
        after_step = self.training(min(SCRATCH_BATCH, len(indices)))
        return train_classifier(classifier, self.train.take(indices), settings, seed, after_step)
