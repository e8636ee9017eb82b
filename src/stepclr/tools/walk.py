"""The eight steps on a few images: what comes in, what goes out, the section of the paper, the file of the code."""

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
from stepclr.device import seeded
from stepclr.loss.contrastive import nt_xent
from stepclr.metrics import contrastive_top1, effective_rank, in_percent, whole_percent
from stepclr.model.encoder import Encoder
from stepclr.pretraining.api import pretrain
from stepclr.pretraining.model import SimCLR, build_model
from stepclr.pretraining.monitor import Monitor
from stepclr.pretraining.resolve import resolve, view_size, views_of
from stepclr.tools.embed import embed
from stepclr.views.keys import view_keys

STEPS = {
    1: ("data", "SimCLR section 2", "data/"),
    2: ("views", "SimCLR section 3, App. A", "views/"),
    3: ("encoder", "SimCLR section 2, f(.)", "model/encoder.py"),
    4: ("projection head", "SimCLR sections 2 and 4.2, g(.)", "model/head.py"),
    5: ("contrastive loss", "SimCLR eq. 1", "loss/reference.py"),
    6: ("pretraining", "SimCLR Algorithm 1, App. B", "pretraining/step.py"),
    7: ("evaluation", "SimCLR section 4, Wu et al. 2018 for kNN", "evaluation/api.py"),
    8: ("use", "SimCLR section 2: the head is discarded", "tools/embed.py"),
}


class Walk:
    """The products of the steps. Each is made when it is first needed, so that one step alone runs no later step."""

    def __init__(self, images: ImageSet, config: PretrainConfig) -> None:
        size = config.size or view_size(images)
        short = replace(config, size=size, epochs=2, batch_size=max(2, len(images) // 2))
        self.config = resolve(short, images)
        self.source = images
        self.views = views_of(self.config)

    def lines(self, step: int) -> Iterator[str]:
        """The input and the output of step `step` (1 to 8), and where to read about it."""
        name, section, file = STEPS[step]
        given, made = getattr(self, f"_{name.split()[-1]}")()
        yield f"step {step}  {name}"
        yield f"  in    {given}"
        yield f"  out   {made}"
        yield f"  read  {section}; src/stepclr/{file}"

    @cached_property
    def images(self) -> ImageSet:
        return self.source.decoded(source_side(self.views.size))

    @cached_property
    def x(self) -> Float32[Tensor, "m c s s"]:
        """The first views of all images, then the second ones."""
        indices = range(len(self.images))
        views: Tensor = self.views(self.images.read(indices), view_keys(self.config.seed, 0, indices))
        return views.flatten(0, 1)

    @cached_property
    def model(self) -> SimCLR:
        """Encoder and head as a run with this seed begins with them."""
        with seeded(self.config.seed):
            return build_model(self.config, self.source).train()

    @cached_property
    def h(self) -> Float32[Tensor, "m f"]:
        with torch.no_grad():
            return self.model.encoder(self.x)

    @cached_property
    def z(self) -> Float32[Tensor, "m d"]:
        with torch.no_grad():
            return self.model.head(self.h)

    @cached_property
    def trained(self) -> tuple[dict[str, Any], Encoder, Float32[np.ndarray, "n f"]]:
        """The last line of a short run's log, its encoder as loaded from the run, and the images' embeddings."""
        with tempfile.TemporaryDirectory(prefix="stepclr-steps-") as folder:
            run = pretrain(self.images, Path(folder) / "run", config=self.config, progress=False)
            return run.metrics[-1], run.encoder(), embed(run, self.images)

    def _data(self) -> tuple[str, str]:
        batch = self.images.read(range(len(self.images)))
        shape = list(batch.shape) if isinstance(batch, Tensor) else f"{len(batch)} of several sizes"
        labeled = int((self.images.labels >= 0).sum())
        return (
            f"{self.source.source}: {len(self.source)} images, {labeled} of them with a label, "
            f"{len(self.images.skipped)} unreadable",
            f"uint8 batch {shape}, labels [{len(self.images)}]",
        )

    def _views(self) -> tuple[str, str]:
        params = self.views.sample_params(self.images.read([0]), view_keys(self.config.seed, 0, [0]))
        boxes = " and ".join(str(view.box[0].tolist()) for view in params)
        shape = [2, len(self.images), *self.x.shape[1:]]
        return (
            f"the batch, and a key for each image; the first one's crops (top, left, height, width) are {boxes}",
            f"two views float32 {shape} in [{self.x.min():.2f}, {self.x.max():.2f}]",
        )

    def _encoder(self) -> tuple[str, str]:
        encoder = self.model.encoder
        weights = sum(parameter.numel() for parameter in encoder.parameters())
        return (
            f"both views in one batch {list(self.x.shape)}",
            f"representation h {list(self.h.shape)}: {encoder.name}, stem {encoder.stem}, {weights:,} weights",
        )

    def _head(self) -> tuple[str, str]:
        return f"h {list(self.h.shape)}", f"projection z {list(self.z.shape)}"

    def _loss(self) -> tuple[str, str]:
        z_i, z_j = self.z.chunk(2)
        loss = nt_xent(z_i, z_j, self.config.temperature)
        chance = 1 / (len(self.z) - 1)
        return (
            f"z_i, z_j {list(z_i.shape)} each; temperature {self.config.temperature:g}: "
            f"{len(self.z)} anchors, {len(self.z) - 2} negatives each",
            f"NT-Xent {loss:.3f}; {whole_percent(contrastive_top1(z_i, z_j))} of the anchors find their positive first "
            f"(chance: {in_percent(chance)})",
        )

    def _pretraining(self) -> tuple[str, str]:
        last, _, _ = self.trained
        return (
            f"steps 1 to 5 in a loop: {last['step']} steps of {self.config.batch_size} images",
            f"a run folder; loss {last['loss']:.3f}, contrastive top-1 {whole_percent(last['contrastive_top1'])}",
        )

    def _evaluation(self) -> tuple[str, str]:
        _, encoder, h = self.trained
        if not Monitor.can_watch(self.images):
            rank = effective_rank(torch.from_numpy(h))
            return (
                "the frozen encoder; no labels here",
                f"h of {len(h)} images uses {rank:.1f} of {encoder.num_features} directions",
            )
        monitor = Monitor(self.images)
        return (
            f"the frozen encoder, {len(monitor.bank)} labeled images, {len(monitor.queries)} images to classify",
            f"weighted kNN top-1 {whole_percent(monitor(encoder, 'fp32')['knn'])} (tiny run; not a meaningful score)",
        )

    def _use(self) -> tuple[str, str]:
        _, _, h = self.trained
        return (
            f"encoder.safetensors and {len(self.images)} images",
            f"embeddings {h.dtype} {list(h.shape)}, without the head",
        )
