"""Supervised training of a classifier on crop and flip: the whole network, or its linear layer alone.

The one loop for SimCLR App. B.5 (fine-tuning), App. B.6 with `freeze` (linear evaluation by SGD, and SupCon's second
stage), and the baseline that learns from scratch.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import SGD, Optimizer

from stepclr.config import ResolvedConfig
from stepclr.data.images import ImageSet
from stepclr.data.order import epoch_order
from stepclr.device import seeded, stop_if_unwanted
from stepclr.errors import StepclrError
from stepclr.model.build import OWN_MODULE
from stepclr.model.classifier import Classifier
from stepclr.model.cpu_conv import cpu_convolutions
from stepclr.model.cpu_norm import cpu_norms
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.pretraining.batches import endless, steps_per_epoch
from stepclr.pretraining.optim import LARS, MOMENTUM, lr_multiplier, not_decayed, parameter_groups, scaled_lr, set_lr
from stepclr.threads import Progress
from stepclr.views.geometry import HorizontalFlip
from stepclr.views.keys import view_keys
from stepclr.views.policies import FLIP, read_policy
from stepclr.views.views import Views

# Of the linear layer. Of 0.3 ... 100, rates of 3 to 30 were best on 200 held-out train images of the sample.
LINEAR_RATE = 10.0
LENGTHS = 1024  # images on which |h| is measured
AfterStep = Callable[[], object]  # is called after each step of a training


@dataclass(frozen=True)
class Supervised:
    """Settings of SGD (Nesterov) or LARS, with a cosine per step from `rate` to 0.

    steps: of `batch_size` images. rate: at the top, as it is. weight_decay: of every weight that learns, except what
    the network excludes (by LARS, as in `parameter_groups`). min_area: smallest crop, share of the image. bf16: train
    under autocast. freeze: only the linear layer learns. optimizer: "sgd" or "lars". flip: probability of mirroring.
    """

    steps: int
    batch_size: int
    rate: float
    min_area: float
    bf16: bool
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    freeze: bool = False
    optimizer: str = "sgd"
    flip: float = FLIP


def crop_words(min_area: float, flip: float) -> str:
    """The views that a classifier is trained on, in words."""
    return f"crop (area from {min_area}) and flip" + ("" if flip == FLIP else f" with probability {flip:g}")


def train_classifier(
    classifier: Classifier,
    images: ImageSet,
    settings: Supervised,
    seed: int,
    after_step: AfterStep | None = None,
) -> Classifier:
    """Train in place by cross-entropy on one crop-and-flip view per image; returned in eval mode, on its device.

    images: labels are positions in `classifier.classes`, each at least 0. A function of the arguments: batch order,
    views and what dropout draws come from `seed`. With `freeze` the encoder, its BatchNorm statistics and kept head
    layers stay bit for bit.
    """
    device = classifier.device
    classifier.min_area, classifier.flip = settings.min_area, settings.flip
    classifier.to(memory_format=torch.channels_last)
    classifier.train(not settings.freeze).requires_grad_(not settings.freeze)
    classifier.linear.requires_grad_(True)
    optimizer = _optimizer(classifier, settings)
    encoder = classifier.encoder
    policy = [HorizontalFlip(settings.flip)]
    views = Views(policy, encoder.size, min_area=settings.min_area, views=1, channels=encoder.channels)
    feed = islice(endless(images, seed, settings.batch_size, device=device), settings.steps)
    # torch has one generator for all threads: networks that draw from it are trained one after another.
    drawing = seeded(seed) if not settings.freeze and _draws(classifier) else nullcontext()
    with drawing, cpu_norms(classifier), cpu_convolutions(classifier):
        for step, (epoch, batch) in enumerate(feed):
            stop_if_unwanted()
            set_lr(optimizer, lr_multiplier(step, settings.steps, warmup_steps=0))
            view = views(batch.images, view_keys(seed, epoch, batch.samples))[0]
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
                logits = classifier(view.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after_step:
                after_step()
    return classifier.eval().requires_grad_(True)


def _draws(classifier: Classifier) -> bool:
    """Whether it draws random numbers in training: by dropout or stochastic depth, or perhaps in a module of a user."""
    layers = [layer for layer in classifier.modules() if "Drop" in type(layer).__name__]
    rates = [getattr(layer, name, 0) for layer in layers for name in ("p", "drop_prob", "prob")]
    return any(rates) or classifier.encoder.name.startswith(OWN_MODULE)


def logits(
    classifier: Classifier, images: ImageSet, progress: Progress | None = None
) -> tuple[Float[Tensor, "n c"], Int[np.ndarray, " n"]]:
    """Logits `[n, C]` of every readable image, and the indices of those; eval mode, float32, center crop."""
    h, kept = represent(classifier.encoder, images, progress=progress)
    training = classifier.training
    classifier.eval()
    with torch.inference_mode():
        values: Tensor = classifier.linear(classifier.neck(h.to(classifier.device))).cpu()
    classifier.train(training)
    return values, kept


def linear_layer(encoder: Encoder, images: ImageSet, epochs: int, config: ResolvedConfig) -> Classifier:
    """SupCon's second stage: a linear layer on the frozen encoder, from all labels of `images`, label smoothing 0.05.

    The rate is LINEAR_RATE / mean |h|^2 at batch 256: the loss is as steep as h is long, and h of unit norm, as SupCon
    has it, wants a rate a hundred times that of a plain ResNet's. A function of the arguments.
    """
    labeled = images.keep(images.classes)
    with seeded(config.seed):
        classifier = Classifier(copy.deepcopy(encoder), labeled.classes).to(encoder.mean.device)
    h, _ = represent(encoder, labeled.take(epoch_order(config.seed, 0, len(labeled))[:LENGTHS]))
    batch, length = min(config.batch_size, len(labeled)), float(h.square().sum(1).mean())
    if not length:
        raise StepclrError("the encoder's representation of every image is 0, from which no linear layer can learn")
    rate = scaled_lr(LINEAR_RATE / length, batch, "linear")
    steps = epochs * steps_per_epoch(len(labeled), batch)
    bf16 = config.precision == "bf16"
    flip = read_policy(config.policy).flip
    settings = Supervised(steps, batch, rate, config.min_area, bf16, label_smoothing=0.05, freeze=True, flip=flip)
    return train_classifier(classifier, labeled, settings, config.seed)


def _optimizer(classifier: Classifier, settings: Supervised) -> Optimizer:
    if settings.optimizer == "lars":
        groups = parameter_groups(classifier, settings.weight_decay, classifier.linear)
        optimizer: Optimizer = LARS(groups, settings.rate)
    else:
        excluded = not_decayed(classifier)
        learning = [p for p in classifier.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learning if p not in excluded], "weight_decay": settings.weight_decay},
            {"params": [p for p in learning if p in excluded], "weight_decay": 0.0},
        ]
        optimizer = SGD(groups, settings.rate, MOMENTUM, nesterov=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = settings.rate
    return optimizer
