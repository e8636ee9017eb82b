"""The eight steps on a few images: what comes in, what goes out, where the paper says so, which file does it."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from stepclr.config import PretrainConfig
from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.loss.contrastive import nt_xent
from stepclr.metrics import contrastive_top1, effective_rank
from stepclr.model.build import build_encoder
from stepclr.model.encoder import Encoder
from stepclr.model.head import ProjectionHead
from stepclr.pretraining.api import pretrain
from stepclr.pretraining.monitor import Monitor
from stepclr.pretraining.resolve import resolve, view_size, views_of
from stepclr.tools.embed import embed
from stepclr.views.keys import view_keys

STEPS = {
    1: ("data", "SimCLR section 2", "data/"),
    2: ("views", "SimCLR section 3, App. A", "views/"),
    3: ("encoder", "SimCLR section 2, f(.)", "model/encoder.py"),
    4: ("projection head", "SimCLR sections 2 and 4.2, g(.)", "model/head.py"),
    5: ("contrastive loss", "SimCLR eq. 1", "loss/contrastive.py"),
    6: ("pretraining", "SimCLR Algorithm 1, App. B", "pretraining/loop.py"),
    7: ("evaluation", "SimCLR section 4, Wu et al. 2018 for kNN", "evaluate/, signals.py"),
    8: ("use", "SimCLR section 2: the head is thrown away", "tools/embed.py"),
}


class Walk:
    """Each step's product is made when first asked for, from those before it: `--only 5` runs no more than it needs."""

    def __init__(self, images: ImageSet, config: PretrainConfig) -> None:
        torch.manual_seed(config.seed)
        size = config.size or view_size(images)
        short = replace(config, size=size, epochs=2, batch_size=max(2, len(images) // 2))
        self.config = resolve(short, images)
        self.raw = images
        self.views = views_of(self.config)

    def lines(self, step: int) -> Iterator[str]:
        """What step `step` (1 to 8) took and made, and where to read about it."""
        name, section, file = STEPS[step]
        came, went = getattr(self, f"_{name.split()[-1]}")()
        yield f"step {step}  {name}"
        yield f"  in    {came}"
        yield f"  out   {went}"
        yield f"  read  {section}; src/stepclr/{file}"

    @cached_property
    def images(self) -> ImageSet:
        return self.raw.decoded(source_side(self.views.size))

    @cached_property
    def pair(self) -> Tensor:
        indices = range(len(self.images))
        return self.views(self.images.read(indices), view_keys(self.config.seed, 0, indices))

    @cached_property
    def encoder(self) -> Encoder:
        return build_encoder(self.config.encoder, self.config.stem, self.config.weights, self.views.size)

    @cached_property
    def h(self) -> Tensor:
        with torch.no_grad():
            h: Tensor = self.encoder.train()(self.pair.flatten(0, 1))
        return h

    @cached_property
    def z(self) -> Tensor:
        with torch.no_grad():
            z: Tensor = ProjectionHead(self.encoder.num_features, self.encoder.num_features).train()(self.h)
        return z

    @cached_property
    def trained(self) -> tuple[dict[str, Any], Encoder, Float32[np.ndarray, "n features"]]:
        """The last line of a short run's log, its encoder as loaded from the run, and the images' embeddings."""
        with tempfile.TemporaryDirectory(prefix="stepclr-steps-") as folder:
            run = pretrain(self.images, Path(folder) / "run", config=self.config, progress=False)
            return run.metrics[-1], run.encoder(), embed(run, self.images)

    def _data(self) -> tuple[str, str]:
        images = self.images.read(range(len(self.images)))
        shape = list(images.shape) if isinstance(images, Tensor) else f"{len(images)} of several sizes"
        labelled = int((self.images.labels >= 0).sum())
        return (
            f"{self.raw.source}: {len(self.raw)} images, {labelled} of them with a label, "
            f"{len(self.images.skipped)} unreadable",
            f"uint8 batch {shape}, labels [{len(self.images)}]",
        )

    def _views(self) -> tuple[str, str]:
        drawn = self.views.sample_params(self.images.read([0]), view_keys(self.config.seed, 0, [0]))
        boxes = " and ".join(str(draws.box[0].tolist()) for draws in drawn)
        return (
            f"the batch, a key for each image; the first one's crops (top, left, height, width) are {boxes}",
            f"two views float32 {list(self.pair.shape)} in [{self.pair.min():.2f}, {self.pair.max():.2f}]",
        )

    def _encoder(self) -> tuple[str, str]:
        count = sum(parameter.numel() for parameter in self.encoder.parameters())
        return (
            f"both views in one batch {list(self.pair.flatten(0, 1).shape)}",
            f"representation h {list(self.h.shape)}: {self.encoder.name}, stem {self.encoder.stem}, {count:,} weights",
        )

    def _head(self) -> tuple[str, str]:
        return f"h {list(self.h.shape)}", f"projection z {list(self.z.shape)}"

    def _loss(self) -> tuple[str, str]:
        z_i, z_j = self.z.chunk(2)
        loss = nt_xent(z_i, z_j, self.config.temperature)
        chance = 1 / (len(self.z) - 1)
        return (
            f"z_i, z_j {list(z_i.shape)} each, temperature {self.config.temperature:g}: "
            f"{len(self.z)} anchors, {len(self.z) - 2} negatives each",
            f"NT-Xent {loss:.3f}; {contrastive_top1(z_i, z_j):.2f} of the anchors find their positive first "
            f"(chance {chance:.3f})",
        )

    def _pretraining(self) -> tuple[str, str]:
        last, _, _ = self.trained
        return (
            f"steps 1 to 5 in a loop: {last['step']} steps of {self.config.batch_size} images",
            f"a run folder; loss {last['loss']:.3f}, contrastive top-1 {last['contrastive_top1']:.2f}",
        )

    def _evaluation(self) -> tuple[str, str]:
        _, encoder, h = self.trained
        if not Monitor.can_watch(self.images):
            rank = effective_rank(torch.from_numpy(h))
            return "the frozen encoder; no labels here", f"h uses {rank:.1f} of {encoder.num_features} directions"
        monitor = Monitor(self.images)
        return (
            f"the frozen encoder, {len(monitor.bank)} images with labels, {len(monitor.queries)} to be named",
            f"weighted kNN top-1 {monitor(encoder, 'fp32')['knn']:.2f} (few steps, few images: no score to quote)",
        )

    def _use(self) -> tuple[str, str]:
        _, _, h = self.trained
        return f"encoder.safetensors and {len(self.images)} images", f"embeddings {h.dtype} {list(h.shape)}; no head"
