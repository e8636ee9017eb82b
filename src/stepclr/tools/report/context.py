"""What the sections of a page share: a run and its images, each read once, and its networks."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from stepclr.config import RunConfig
from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.data.order import spread
from stepclr.data.reading import AS_DECLARED, Reading
from stepclr.data.sources import Source, open_images, open_read_as, sources_of
from stepclr.device import default_device, seeded
from stepclr.errors import StepclrError
from stepclr.evaluation.init_from import trained_head
from stepclr.evaluation.predict import classify
from stepclr.evaluation.results import Scores
from stepclr.evaluation.stored import reading_of
from stepclr.loss.objectives import OBJECTIVES
from stepclr.metrics import weighted_knn
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.model.files import CLASSIFIER
from stepclr.model.weights import ENCODER_FILE
from stepclr.pretraining.model import SimCLR, build_model
from stepclr.pretraining.resolve import views_of
from stepclr.pretraining.run import Run
from stepclr.tools.methods import TONES
from stepclr.tools.scores import stored_scores
from stepclr.views.views import Views

Json = dict[str, Any]
MAX_IMAGES = 1000  # of the source, on the map
MAX_BANK = 1000  # labeled images that vote on the classes of others


@dataclass(frozen=True, eq=False)
class Colored:
    """The class of each image of the sample (-1: none) that a map can color, their names, and where they come from."""

    labels: NDArray[np.int64]
    classes: list[str]
    words: str


@dataclass(frozen=True, eq=False)
class Context:
    """A run with its images, if they can still be found; otherwise `images` is None and `why` says why."""

    run: Run
    images: ImageSet | None
    why: str = ""
    moved: Sequence[str] = ()
    """Where the run's images are, one by one, if that was said."""

    @cached_property
    def config(self) -> RunConfig:
        return self.run.config

    @property
    def sources(self) -> list[str]:
        """Where the run's images are, one by one, for commands."""
        return list(self.moved) or self.config.sources

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
    def no_encoder(self) -> str:
        """Why there is no encoder, in a sentence; "" where there is one."""
        if (self.run.folder / ENCODER_FILE).is_file():
            return ""
        return f"There is no encoder: the run has not ended, or it diverged ({ENCODER_FILE} is written at its end)."

    @cached_property
    def embedded(self) -> tuple[Float[Tensor, "n f"], ImageSet]:
        """h `[n, F]` of the images of `sample` that could be read, and these."""
        h, indices = represent(self.encoder, self.sample)
        return h, self.sample.take(indices)

    @cached_property
    def pixels(self) -> list[UInt8[Tensor, "c _ _"]]:
        """The images of `embedded`."""
        images = self.embedded[1]
        return list(images.read(range(len(images))))

    @cached_property
    def colored(self) -> Colored:
        """Classes of the images of `embedded`: their labels, otherwise predictions, otherwise none."""
        h, images = self.embedded
        if (images.labels >= 0).any():
            return _of_few(images.labels, images.classes, "Colors are the labels.")
        if (self.run.folder / CLASSIFIER).is_file():
            predicted = classify(self.run.folder / CLASSIFIER, images)
            if not predicted.skipped:
                words = f"Colors are the classes that {CLASSIFIER} predicts; these images have no labels."
                return _of_few(predicted.probabilities.argmax(1), predicted.classes, words)
        protocol = self.scores.protocol if self.scores else {}
        bank = self.opened(protocol["train"]) if "train" in protocol else None
        if bank is not None and (bank.labels >= 0).any():
            bank = bank.keep(bank.classes)
            bank = bank.take(spread(len(bank), MAX_BANK)).decoded(source_side(self.encoder.size), budget=0)
            of_bank, indices = represent(self.encoder, bank)
            votes = weighted_knn(of_bank, torch.from_numpy(bank.labels[indices]).to(of_bank.device), h)
            words = (
                f"Colors are predictions: the classes of the nearest of {len(indices):,} labeled images of "
                f"{bank.source}. These images have no labels."
            )
            return _of_few(votes.cpu().numpy(), bank.classes, words)
        return Colored(np.full(len(images), -1), [], "Not colored: there are no labels and no classifier.")

    def opened(self, part: Json) -> ImageSet | None:
        """The images of a part of a protocol, "train" or "test"; None where they cannot be found."""
        placed = {"sources": self.placed(part.get("sources") or [part["source"]])} if part else {}
        return open_part({**part, **placed}, self.config.reading)

    def placed(self, sources: Sequence[str]) -> list[str]:
        """Where the images of these sources are now, if they are the run's own, which may have moved."""
        return self.sources if list(sources) == self.config.sources else list(sources)

    @cached_property
    def trained(self) -> SimCLR:
        """Encoder and head after training. Raises StepclrError where the run has no head."""
        head = trained_head(self.run, self.encoder)
        self.encoder.frozen_statistics = self.config.batchnorm == "frozen"  # as in training; its file does not say it
        return SimCLR(self.encoder, head.to(default_device()))

    @cached_property
    def untrained(self) -> SimCLR:
        """Encoder and head as they were before the first step."""
        assert self.images is not None
        with seeded(self.config.seed):
            return build_model(self.config, self.images).to(default_device())


def open_context(run: Run, source: Source | None) -> Context:
    """source: where the run's images are, if they are no longer where config.json says."""
    config = run.config
    try:
        images = run.images(source)
    except (StepclrError, OSError) as error:
        return Context(run, None, f"the images of {config.source_text} cannot be shown: {error}")
    if source is None:
        return Context(run, images)
    moved = sources_of(images)
    return Context(run, images, moved=moved if isinstance(moved, list) else [moved])


def open_part(part: Json, reading: Reading = AS_DECLARED) -> ImageSet | None:
    """The images of a part of a protocol, "train" or "test"; None where they cannot be found."""
    if not part:
        return None
    try:
        reading = reading.changed(reading_of(part))
        images = open_read_as(part.get("sources") or part["source"], reading)
        return open_images(images, labels=part.get("labels") or None, split=part.get("split"))
    except (StepclrError, OSError):
        return None


def _of_few(labels: NDArray[np.int64], classes: list[str], words: str) -> Colored:
    """The most frequent classes, as many as there are colors."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    kept = np.sort(np.argsort(-counts, kind="stable")[:TONES])
    if len(classes) > TONES:
        words += f" The {TONES} most frequent of {len(classes)} classes have one."
    # The new label of each class; the additional last one is that of images without a label, -1.
    new_labels = np.full(len(classes) + 1, -1)
    new_labels[kept] = np.arange(len(kept))
    return Colored(new_labels[labels], [classes[label] for label in kept.tolist()], words)
