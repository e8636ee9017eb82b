"""SimCLRv2's third stage: a student learns what a fine-tuned teacher predicts for unlabeled images."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from stepclr.config import PretrainConfig, PretrainOptions, RunConfig
from stepclr.data.sources import Source
from stepclr.model.classifier import Classifier
from stepclr.model.files import load_classifier
from stepclr.pretraining.api import pretrain
from stepclr.pretraining.run import Run
from stepclr.views.geometry import HorizontalFlip
from stepclr.views.policies import FLIP

SETTINGS = PretrainConfig(loss="distill", policy="crop", views=1)


def distill(
    classifier: str | os.PathLike[str],
    images: Source,
    out: str | os.PathLike[str],
    *,
    student: str | None = None,
    limit: int | None = None,
    resume: bool = False,
    progress: bool = True,
    since: float | None = None,
    **options: Unpack[PretrainOptions],
) -> Run:
    """Train a student on a teacher's predictions (SimCLRv2 eq. 2) into the run folder `out`.

    The run is like any other, with checkpoints and exact resume; its classifier is `classifier.safetensors`. It sees
    one view of crop and flip per image (SimCLRv2 App. B), with the smallest crop and the flips that the teacher was
    trained with.

    Args:
        classifier: the teacher that `finetune` wrote: a file, or a run's folder.
        images: images, which need no labels: an `ImageSet`, or anything `open_images` takes.
        out: the run's folder.
        student: the student's encoder; "resnet18" by default. `weights="runs/a"` starts from a pretrained run.
        limit, resume, progress, since: as in `pretrain`.
        options: other fields of `PretrainConfig`; `temperature`, 1 by default, is that of both softmaxes.

    Raises what `pretrain` raises.
    """
    stored = RunConfig.read(Path(out)) if resume else None
    config = stored.settings() if stored else _as_trained(load_classifier(classifier))
    config = replace(config, teacher=os.fspath(classifier))
    if student is not None:
        options["encoder"] = student
    return pretrain(images, out, config=config, limit=limit, resume=resume, progress=progress, since=since, **options)


def _as_trained(teacher: Classifier) -> PretrainConfig:
    """The settings of a student, with the views that the teacher was trained on: a policy may do without flips."""
    policy = SETTINGS.policy
    if teacher.flip != FLIP:
        policy += f"+{HorizontalFlip(teacher.flip)!r}"
    return replace(SETTINGS, policy=policy, min_area=teacher.min_area)
