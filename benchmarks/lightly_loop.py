"""lightly's documented SimCLR loop, for the scripts that compare with it: its transform, loader, head, loss, plain SGD.

Only what its page leaves to the reader differs: the images, their size, the encoder.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import stepclr

try:
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms.simclr_transform import SimCLRTransform
except ModuleNotFoundError as missing:
    sys.exit(f"this compares with lightly, and {missing.name} is not installed: pip install '.[bench]'")


@dataclass
class Settings:
    """Those of lightly's page and transform; `rate` is the learning rate as it is."""

    batch: int = 256
    temperature: float = 0.5
    min_area: float = 0.08
    rate: float = 0.06


class LightlyLoop:
    """A ResNet-18 with that stem, float32, on the images of a folder, or of a data set that takes the transform."""

    def __init__(
        self,
        images: Path | Callable[[Any], Dataset[Any]],
        size: int,
        stem: str,
        settings: Settings,
        encoder: str = "resnet18",
        workers: int = 2,
        device: torch.device | None = None,
    ) -> None:
        blur = 0.0 if size <= 32 else 0.5
        transform = SimCLRTransform(input_size=size, gaussian_blur=blur, min_scale=settings.min_area)
        dataset = LightlyDataset(str(images), transform=transform) if isinstance(images, Path) else images(transform)
        self.device = device
        self.loader = DataLoader(dataset, settings.batch, shuffle=True, drop_last=True, num_workers=workers)
        self.encoder = stepclr.build_encoder(encoder, stem, size=size)
        width = self.encoder.num_features
        self.model = nn.Sequential(self.encoder.body, SimCLRProjectionHead(width, width, 128)).to(device)
        self.loss = NTXentLoss(settings.temperature)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=settings.rate)

    def steps(self, epochs: int | None = None) -> Iterator[int]:
        """Train, and yield the number of images after each step."""
        for _ in itertools.count() if epochs is None else range(epochs):
            for (x0, x1), _target, _name in self.loader:
                loss = self.loss(self.model(x0.to(self.device)), self.model(x1.to(self.device)))
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                yield len(x0)
