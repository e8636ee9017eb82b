"""`pretrain`: a whole run, from what a user asks for to an encoder file."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepclr.config import PretrainConfig, stored_config
from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.data.sources import Source, open_images
from stepclr.distributed import World, join, restarted
from stepclr.errors import StepclrError, choose
from stepclr.model.classifier import Classifier
from stepclr.model.files import load_classifier, save_classifier, save_encoder
from stepclr.pretraining.classifier import linear_layer
from stepclr.pretraining.loop import list_skipped, train
from stepclr.pretraining.progress import Progress
from stepclr.pretraining.resolve import (
    build,
    check_same_images,
    describe,
    encoder_of,
    resumed,
    settle,
    threads,
    views_of,
)
from stepclr.pretraining.run import Run
from stepclr.recipes import recipe_config
from stepclr.views.policies import policy_name


def pretrain(
    images: Source,
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    config: PretrainConfig | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    resume: bool = False,
    progress: bool = True,
    profile: bool = False,
    tensorboard: bool = False,
    **options: Any,
) -> Run:
    """Pretrain an encoder on images without labels (SimCLR Algorithm 1) into the run folder `out`.

    Args:
        images: an `ImageSet`, or anything `open_images` takes; `classes` and `limit` choose among its images.
        out: the run's folder. It must not hold another run.
        recipe: name of a recipe (`stepclr.recipes`) that gives the defaults.
        config: all settings at once, instead of `recipe`; `options` change it.
        resume: go on from the newest checkpoint in `out`; from step 0 where there is none. On CPU the run then ends
            bit for bit as one that never stopped. Its settings stay, but for epochs, keep_every, monitor and cache_gib.
        progress: print settings and progress to standard error.
        profile: print where a step's time went, at the end of the training.
        tensorboard: write the metrics to TensorBoard's event files in `out`/tensorboard too (extra `tensorboard`).
        options: fields of `PretrainConfig`, as `epochs=100`, `encoder="resnet50"`; `policy` may be a list of ops.

    Started by torchrun, every rank calls this alike, and they train as one: `batch_size` counts the images of all,
    the first rank writes the run, and a job that torchrun has started anew resumes by itself.

    Returns the run. Raises StepclrError for input that cannot be used, `Diverged` when the loss is not finite, and
    `Interrupted` (a KeyboardInterrupt) after Ctrl-C or SIGTERM, when a checkpoint has been written.
    """
    world = join()
    resume = resume or restarted()
    run = Run(Path(out))
    run.check_free(resume)
    stored = run.config if resume and run.exists() else None
    for name in options:
        choose("option", name, [field.name for field in fields(PretrainConfig)])
    config = config or (stored_config(run.folder) if stored else None) or recipe_config(recipe)
    if "policy" in options:
        options["policy"] = policy_name(options["policy"])  # a list of ops has a name too
    config = replace(config, **options)
    if stored:
        config = resumed(config, stored, run)
        classes, limit = stored["classes"] or None, stored["limit"]
    images = open_images(images, classes=classes, limit=limit)
    teacher = load_classifier(config.teacher) if config.teacher else None
    config = settle(config, images, teacher)
    report = Progress(progress and world.first, tensorboard and world.first)
    watched = open_images(config.monitor, classes=images.chosen) if config.monitor else None
    views = views_of(config, stored["renderer"] if stored else "auto")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build(config, images, teacher)
        with world.in_turn():
            images = report.while_decoding(images, source_side(views.size), config.cache_gib)
            watched = report.while_decoding(watched, source_side(views.size), config.cache_gib) if watched else images
        facts = describe(config, images, limit, model, views, world)
        world.check_same(facts | {"threads": None})  # and nobody goes on to write before all have looked for a run
        _check_enough(images, config, world)
        if stored:
            check_same_images(facts, stored, run)
        elif world.first:
            run.write("config.json", json.dumps(facts, indent=2))
        list_skipped(images, run, world)
        with run.held() if world.first else nullcontext(), threads((stored or facts)["threads"]):
            train(run, config, images, watched, views, model, teacher, report, profile, world)
            if world.first:
                _save(run, config, images, model, teacher, report)
    list_skipped(images, run, world)
    return run


def _check_enough(images: ImageSet, config: PretrainConfig, world: World) -> None:
    if len(images) < 2:
        raise StepclrError(f"{images.source} has {len(images)} image: a contrast needs at least 2")
    if (batch := min(config.batch_size, len(images))) < world.size:
        raise StepclrError(f"{world.size} ranks cannot share a batch of {batch}: take fewer, or a larger --batch-size")


def _save(
    run: Run,
    config: PretrainConfig,
    images: ImageSet,
    model: nn.ModuleDict,
    teacher: Classifier | None,
    report: Progress,
) -> None:
    """What the run is for: the encoder, and where it has a linear layer, the classifier."""
    encoder, head, classifier = encoder_of(model), model["head"], None
    save_encoder(encoder, run.folder / "encoder.safetensors")
    if isinstance(head, nn.Linear):
        classifier = Classifier(encoder, teacher.classes if teacher else images.classes)
        classifier.linear = head
    elif config.linear_epochs:
        report.say(f"second stage: a linear layer on the frozen encoder, {config.linear_epochs} epochs")
        classifier = linear_layer(encoder, images, config.linear_epochs, config)
    if classifier:
        save_classifier(classifier, run.folder / "classifier.safetensors")
