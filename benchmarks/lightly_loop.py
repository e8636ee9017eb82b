"""lightly's SimCLR loop at its best, for the scripts that compare with it: the settings of its own CIFAR-10 benchmark.

From docs/source/getting_started/benchmarks/cifar10_benchmark.py in github.com/lightly-ai/lightly: batch 128, SGD with
rate 0.06 at batch 128, momentum 0.9 and decay 5e-4 on everything, a cosine to 0, NTXentLoss at temperature 0.5, jitter
of strength 0.5 and no blur at 32 px, and ImageNet's mean and std, in training and when scored. Above 32 px, the
transform's defaults. What differs from its page is the images, the encoder (built by stepclr), its number of workers,
and that the cosine falls at every step instead of every epoch: runs of less than an epoch have one too. "bf16" adds
what any PyTorch user can: autocast to bfloat16 around the step, and channels_last. Both can be given other `Settings`.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

import stepclr
from stepclr.model.cpu_conv import cpu_convolutions
from stepclr.model.cpu_norm import cpu_norms
from stepclr.pretraining.optim import lr_multiplier

try:
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms.simclr_transform import SimCLRTransform
    from lightly.transforms.utils import IMAGENET_NORMALIZE
except ModuleNotFoundError as missing:
    sys.exit(f"this compares with lightly, and {missing.name} is not installed: pip install '.[bench]'")

NAMES = {"lightly": False, "lightly-bf16": True}  # the two rows: without and with bf16 and channels_last


@dataclass(frozen=True)
class Settings:
    """By default, those of lightly's benchmark."""

    lr: float = 0.06 / 128
    """For each image of a batch."""
    warmup: float = 0.0
    """Share of the steps in which the rate grows."""
    nesterov: bool = False
    weight_decay: float = 5e-4
    temperature: float = 0.5
    hidden: int | None = None
    """Width of the head's hidden layer; by default, that of the encoder."""
    min_area: float = 0.08
    """Smallest share of an image that a crop takes."""


class LightlyLoop:
    """The loop on the images of a folder, or of a data set that takes the transform; its cosine has `length` steps."""

    def __init__(
        self,
        images: Path | Callable[[Any], Dataset[Any]],
        size: int,
        stem: str,
        length: int,
        batch: int = 128,
        bf16: bool = False,
        encoder: str = "resnet18",
        workers: int = 2,
        device: torch.device | None = None,
        settings: Settings = Settings(),
    ) -> None:
        small: dict[str, Any] = {"cj_strength": 0.5, "gaussian_blur": 0.0} if size <= 32 else {}
        transform = SimCLRTransform(input_size=size, min_scale=settings.min_area, **small)
        dataset = LightlyDataset(str(images), transform=transform) if isinstance(images, Path) else images(transform)
        self.length, self.device, self.bf16 = length, device or torch.device("cpu"), bf16
        self.loader = DataLoader(dataset, batch, shuffle=True, drop_last=True, num_workers=workers)

        # The transform normalizes the images of training; the encoder itself does so for whoever scores it.
        self.encoder = stepclr.build_encoder(encoder, stem, size=size)
        for name, value in IMAGENET_NORMALIZE.items():
            self.encoder.get_buffer(name).copy_(torch.tensor(value).view(3, 1, 1))
        width = self.encoder.num_features
        head = SimCLRProjectionHead(width, settings.hidden or width, 128)
        self.model = nn.Sequential(self.encoder.body, head).to(self.device)
        if bf16:
            self.model.to(memory_format=torch.channels_last)

        self.loss = NTXentLoss(settings.temperature)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            settings.lr * batch,
            momentum=0.9,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
        warmup_steps = round(settings.warmup * length)
        self.schedule = LambdaLR(self.optimizer, lambda step: lr_multiplier(step, length, warmup_steps))

    def steps(self, endless: bool = False) -> Iterator[int]:
        """Train, and yield the number of images after each step. endless: for a measurement of speed."""
        batches = itertools.chain.from_iterable(itertools.repeat(self.loader))
        for (x0, x1), _target, _name in batches if endless else itertools.islice(batches, self.length):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(self.model(self._moved(x0)), self.model(self._moved(x1)))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            yield len(x0)

    def _moved(self, x: Tensor) -> Tensor:
        layout = torch.channels_last if self.bf16 else torch.contiguous_format
        return x.to(self.device, memory_format=layout)

    @contextmanager
    def stepclr_layers(self) -> Iterator[None]:
        """stepclr's layers for the CPU compute the network in bfloat16: the same sums in less time."""
        with cpu_norms(self.model), cpu_convolutions(self.model):
            yield
