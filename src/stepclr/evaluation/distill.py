"""SimCLRv2's third stage: a student learns what a fine-tuned teacher predicts for unlabeled images."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from stepclr.config import PretrainConfig, PretrainOptions, RunConfig
from stepclr.data.sources import Source
from stepclr.pretraining.api import pretrain
from stepclr.pretraining.run import Run

# One view of crop and flip per image, as in fine-tuning (SimCLRv2 App. B).
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

    The run is like any other, with checkpoints and exact resume; its classifier is `classifier.safetensors`.

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
    config = replace(stored.settings() if stored else SETTINGS, teacher=os.fspath(classifier))
    if student is not None:
        options["encoder"] = student
    return pretrain(images, out, config=config, limit=limit, resume=resume, progress=progress, since=since, **options)
