"""What the sections of a page are made of: a run and its images, each read once, and its networks."""

import csv
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stepclr.config import RunConfig
from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.device import default_device
from stepclr.errors import StepclrError
from stepclr.evaluation.init_from import trained_head
from stepclr.evaluation.results import Scores
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.pretraining.model import SimCLR, build_model
from stepclr.pretraining.resolve import views_of
from stepclr.pretraining.run import Run
from stepclr.tools.scores import stored_scores
from stepclr.tools.spread import spread
from stepclr.views.views import Views

Json = dict[str, Any]
LOOKED_AT = 1000  # images of the source on the map


@dataclass(frozen=True, eq=False)
class Material:
    """A run, and the images it was trained on where they can still be found: else `images` is None and `why` says so.

    Attributes: config: of config.json, and `settings` its settings. metrics: the lines of metrics.jsonl.
    scores: evaluation.json, or None.
    """

    run: Run
    images: ImageSet | None
    why: str = ""

    @cached_property
    def config(self) -> Json:
        return asdict(self.run.config)

    @cached_property
    def settings(self) -> RunConfig:
        return self.run.config

    @cached_property
    def metrics(self) -> list[Json]:
        return self.run.metrics

    @cached_property
    def scores(self) -> Scores | None:
        return stored_scores(self.run)

    @cached_property
    def skipped(self) -> list[list[str]]:
        """The lines of skipped.csv: (path, reason)."""
        path = self.run.folder / "skipped.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return [row for row in csv.reader(file) if len(row) == 2][1:]

    @cached_property
    def views(self) -> Views:
        return views_of(self.settings, self.settings.renderer)

    @cached_property
    def contrastive(self) -> bool:
        """Whether the run has projections that a loss contrasts."""
        return OBJECTIVES[self.settings.loss].contrastive

    @cached_property
    def by_label(self) -> bool:
        """Whether the loss takes images with the same label as positives."""
        return self.contrastive and OBJECTIVES[self.settings.loss].needs_labels

    @cached_property
    def some(self) -> ImageSet:
        """Readable images, spread evenly over the source, reduced as for the views."""
        assert self.images is not None
        return self.images.take(spread(len(self.images), LOOKED_AT)).decoded(source_side(self.views.size), budget=0)

    @cached_property
    def encoder(self) -> Encoder:
        return self.run.encoder().to(default_device())

    @cached_property
    def embedded(self) -> tuple[Float[Tensor, "n f"], NDArray[np.int64]]:
        """h `[n, F]` of `some`, and which of them could be read."""
        return represent(self.encoder, self.some)

    @cached_property
    def trained(self) -> SimCLR:
        """Encoder and head after training. Raises StepclrError where the head is not to be had."""
        head = trained_head(self.run, self.encoder)
        return SimCLR(self.encoder, head.to(default_device()))

    @cached_property
    def untrained(self) -> SimCLR:
        """Encoder and head as they were before the first step."""
        assert self.images is not None
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            return build_model(self.settings, self.images).to(default_device())


def material(run: Run, source: str | ImageSet | None) -> Material:
    """The run's material; source: where its images are, if no longer where config.json says."""
    config = run.config
    try:
        return Material(run, run.images(source))
    except (StepclrError, OSError) as error:
        return Material(run, None, f"the images of {config.source} cannot be shown: {error}")
