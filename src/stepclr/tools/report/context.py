"""What the sections of a page share: a run and its images, each read once, and its networks."""

import csv
from dataclasses import dataclass
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
from stepclr.data.order import spread
from stepclr.data.sources import Source
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
from stepclr.views.views import Views

Json = dict[str, Any]
MAX_IMAGES = 1000  # of the source, on the map


@dataclass(frozen=True, eq=False)
class Context:
    """A run with its images, if they can still be found; otherwise `images` is None and `why` says why."""

    run: Run
    images: ImageSet | None
    why: str = ""

    @cached_property
    def config(self) -> RunConfig:
        return self.run.config

    @cached_property
    def metrics(self) -> list[Json]:
        """The lines of metrics.jsonl."""
        return self.run.metrics

    @cached_property
    def scores(self) -> Scores | None:
        """evaluation.json, if there is one."""
        return stored_scores(self.run)

    @cached_property
    def left_out(self) -> dict[str, list[tuple[str, str]]]:
        """The lines of skipped.csv, (path, reason): images that were "skipped", what was "ignored", or "changed"."""
        groups: dict[str, list[tuple[str, str]]] = {"skipped": [], "ignored": [], "changed": []}
        path = self.run.folder / "skipped.csv"
        if not path.exists():
            return groups
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [row for row in csv.reader(file) if len(row) == 2][1:]
        for name, reason in rows:
            outcome, _, rest = reason.partition(": ")
            if outcome in ("ignored", "changed"):
                groups[outcome].append((name, rest))
            else:
                groups["skipped"].append((name, reason))
        return groups

    @cached_property
    def views(self) -> Views:
        return views_of(self.config, self.config.renderer)

    @cached_property
    def contrastive(self) -> bool:
        """Whether the loss contrasts projections."""
        return OBJECTIVES[self.config.loss].contrastive

    @cached_property
    def by_label(self) -> bool:
        """Whether the loss takes images with the same label as positives."""
        return self.contrastive and OBJECTIVES[self.config.loss].needs_labels

    @cached_property
    def sample(self) -> ImageSet:
        """At most MAX_IMAGES images, evenly spread over the source, decoded as for the views."""
        assert self.images is not None
        return self.images.take(spread(len(self.images), MAX_IMAGES)).decoded(source_side(self.views.size), budget=0)

    @cached_property
    def encoder(self) -> Encoder:
        return self.run.encoder().to(default_device())

    @cached_property
    def embedded(self) -> tuple[Float[Tensor, "n f"], NDArray[np.int64]]:
        """h `[n, F]` of `sample`, and the indices of its images that could be read."""
        return represent(self.encoder, self.sample)

    @cached_property
    def trained(self) -> SimCLR:
        """Encoder and head after training. Raises StepclrError where the run has no head."""
        head = trained_head(self.run, self.encoder)
        return SimCLR(self.encoder, head.to(default_device()))

    @cached_property
    def untrained(self) -> SimCLR:
        """Encoder and head as they were before the first step."""
        assert self.images is not None
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return build_model(self.config, self.images).to(default_device())


def open_context(run: Run, source: Source | None) -> Context:
    """source: where the run's images are, if they are no longer where config.json says."""
    config = run.config
    try:
        return Context(run, run.images(source))
    except (StepclrError, OSError) as error:
        return Context(run, None, f"the images of {config.source_text} cannot be shown: {error}")
