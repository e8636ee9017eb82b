"""`pretrain`: a whole run, from what a user asks for to an encoder file."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from stepclr.config import SETTINGS, PretrainConfig, PretrainOptions, ResolvedConfig, RunConfig
from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.data.labels import check_classes, heading, of_these_classes, to_learn_from
from stepclr.data.sources import Source, absolute_source, open_images, open_read_as, sources_of
from stepclr.device import default_device, seeded, software, torch_threads
from stepclr.distributed import World, begins, join, restarted
from stepclr.errors import StepclrError, choose, counted
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.build import OWN_MODULE, module_name
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import SMALL
from stepclr.model.files import CLASSIFIER, load_classifier, save_classifier, save_encoder
from stepclr.model.timm_weights import TIMM, full_name, timm_name
from stepclr.model.weights import ENCODER_FILE, is_finite
from stepclr.pretraining.batches import steps_per_epoch
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.pretraining.classifier import linear_layer
from stepclr.pretraining.logging import Printer
from stepclr.pretraining.loop import Diverged, train
from stepclr.pretraining.model import SimCLR, build_model, head_text
from stepclr.pretraining.pace import fitted
from stepclr.pretraining.resolve import ENCODER, as_plain, changed, resolve, views_of
from stepclr.pretraining.resume import as_it_began, check_same_choice, extended, resumed
from stepclr.pretraining.run import Run, list_skipped
from stepclr.recipes import recipe_config
from stepclr.views.policies import read_policy
from stepclr.views.views import Views


def pretrain(
    images: Source,
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    config: PretrainConfig | None = None,
    classes: str | Sequence[str] | None = None,
    limit: int | None = None,
    resume: bool = False,
    progress: bool = True,
    profile: bool = False,
    tensorboard: bool = False,
    since: float | None = None,
    **options: Unpack[PretrainOptions],
) -> Run:
    """Pretrain an encoder on images without labels (SimCLR Algorithm 1) into the run folder `out`.

    Args:
        images: an `ImageSet`, or anything `open_images` takes; `classes` and `limit` choose among its images. Those
            that a table's column `split` holds out (see `open_images`) are left out.
        out: the run's folder. It must not hold another run.
        recipe: name of a recipe (`stepclr.recipes`) that gives the defaults.
        config: all settings at once, instead of `recipe`; `options` change it.
        resume: continue from the newest checkpoint in `out`, or from step 0 where there is none. On a CPU the run then
            ends bit for bit as one that never stopped. Its settings stay, except epochs, keep_every, monitor and
            cache_gib, which config.json then has, and where its images are now.
        progress: print settings and progress to standard error.
        profile: print where a step's time went, at the end of the training.
        tensorboard: write the metrics to TensorBoard's event files in `out`/tensorboard too (extra `tensorboard`).
        since: the `time.monotonic()` from which the setting `minutes` counts; by default, that of this call.
        options: fields of `PretrainConfig`, such as `epochs=100`. `policy` may be a list of ops, and `encoder`
            your own `nn.Module` (images `[n, C, S, S]` in [0, 1] -> `[n, F]`), which is then trained in place.

    Started by torchrun, every rank calls this with the same arguments, and they train as one: `batch_size` counts the
    images of all ranks, the first rank writes the run, and a job that torchrun has restarted resumes by itself.

    Returns the run. Raises StepclrError for input that cannot be used, `Diverged` when the loss is not finite, and
    `Interrupted` (a KeyboardInterrupt) after Ctrl-C or SIGTERM, once a checkpoint has been written.
    """
    # What is asked for: a recipe, all settings at once, or those of the run that is resumed; `options` change them.
    since = time.monotonic() if since is None else since
    world = join()
    run = Run(Path(out))
    resume = resume or restarted(run.folder)
    run.check_free(resume)
    begins(run.folder)
    stored = run.config if resume and run.exists() else None
    config = _before_options(recipe, config, stored, options)
    module = _own_module(options, stored, run)
    if "policy" in options:
        options["policy"] = read_policy(options["policy"]).name  # a list of ops has a name too
    config, unused = changed(config, options)
    config = _with_absolute_paths(config)
    if stored:
        check_same_choice(classes, limit, stored, run)
        config = resumed(config, stored, run)
        classes, limit = stored.classes or None, stored.limit

    # What the images and the machine decide.
    images = open_images(images, **asdict(config.reading))
    images = to_learn_from(run.labeled(images) if stored else images)
    images = open_images(images, classes=classes, limit=limit)
    limit = images.limit
    teacher = load_classifier(config.teacher) if config.teacher else None
    images = teacher.encoder.ranged(images) if teacher else images
    decided = resolve(config, images, teacher)
    watched = _watched(decided, images)
    views = views_of(decided, stored.renderer if stored else "auto")
    printer = Printer(progress and world.first, tensorboard and world.first)
    if stored and recipe:
        unused.append(f"recipe {recipe}: not used, because {run.folder} resumes with its own settings")
    for line in unused:
        printer.say(line)
    printer.say(heading(images))
    if watched:
        printer.say(f"monitor: {heading(watched)}")
        check_classes(watched)

    with seeded(decided.seed):
        model = _begun_model(decided, images, teacher, module, stored, run)
        if model.encoder.origin and not stored:
            printer.say(f"weights: {model.encoder.origin}")
        if decided.stem == "auto" and model.encoder.stem == "small":
            printer.say(f"stem small, for views of up to {SMALL} px; small-stride2 takes a fourth of the operations")
        with world.in_turn():
            given, images = images, _decoded(images, decided, printer)
            images = as_it_began(given, images, decided.size, stored, run) if stored else images
            watched = _decoded(watched, decided, printer) if watched else images
        _check_enough(images, decided, world)
        if decided.batch_size > len(images):  # the rate is that of the batch that is used
            printer.say(f"batches of {len(images)} images instead of {decided.batch_size}: there are no more")
            decided = replace(decided, batch_size=len(images))
        if config.minutes:
            printer.say(f"measuring the pace, to see how many epochs take {config.minutes:g} minutes")
            decided = fitted(decided, config, config.minutes, since, images, watched, views, model, teacher, world)
            printer.say(f"{config.minutes:g} minutes: {counted(decided.epochs, 'epoch')}")
        for line in _lines_on_length(config, decided):
            printer.say(line)

        # No rank writes before all have looked for a run.
        run_config = _run_config(decided, images, limit, model, views, world)
        if stored:
            run_config = extended(stored, run_config, run)
        world.check_same(asdict(run_config) | {"threads": None})

        # The run's record, before its first step. Then training, with as many threads as the run began with.
        with run.held(new=stored is None) if world.first else nullcontext(), torch_threads(run_config.threads):
            if world.first:
                run_config.write(run.folder)
                run.write_labels(images)
            list_skipped(images, run, world)
            train(run, decided, images, watched, views, model, teacher, printer, profile, world)
            if world.first:
                _save(run, decided, images, model, teacher, printer)
            world.wait()  # for a second stage, which the first rank trains alone
    list_skipped(images, run, world)
    return run


def _before_options(
    recipe: str | None, config: PretrainConfig | None, stored: RunConfig | None, options: PretrainOptions
) -> PretrainConfig:
    """The settings that `options` change. Raises StepclrError for an unknown option."""
    for name in options:
        choose("option", name, SETTINGS)
    if recipe and config:
        raise StepclrError("recipe and config are two ways to give all settings: give one of them")
    if config is not None:
        return as_plain(config)
    return stored.settings() if stored else recipe_config(recipe)


def _own_module(options: PretrainOptions, stored: RunConfig | None, run: Run) -> nn.Module | None:
    """The encoder's network where it is the user's own; among the options its name takes its place."""
    network = options.get("encoder")
    if isinstance(network, nn.Module):
        options["encoder"] = module_name(network)
        return network
    if stored and stored.encoder.startswith(OWN_MODULE):
        own = stored.encoder.removeprefix(OWN_MODULE)
        raise StepclrError(f"{run.folder} was made with your own module {own}: in Python, pass encoder={own}(...) too")
    return None


def _lines_on_length(config: PretrainConfig, decided: ResolvedConfig) -> Iterator[str]:
    """A line for each setting that the number of epochs leaves without its effect."""
    if config.warmup is not None and decided.warmup < config.warmup:
        yield (
            f"warm-up of {decided.warmup:g} epochs instead of {config.warmup:g}, which are not fewer than the "
            f"{decided.epochs:g} of the run"
        )
    if (decided.keep_every or 0) > decided.epochs:
        yield (
            f"keep_every {decided.keep_every} keeps no checkpoint besides the last two: the run has "
            f"{counted(decided.epochs, 'epoch')}"
        )


def _watched(config: ResolvedConfig, images: ImageSet) -> ImageSet | None:
    """The images of `monitor`, read as those of the run, and of the classes chosen there; None without `monitor`."""
    if not config.monitor:
        return None
    watched = open_read_as(config.monitor, config.reading)
    return of_these_classes(watched, images.chosen) if images.chosen else watched


def _with_absolute_paths(config: PretrainConfig) -> PretrainConfig:
    """The settings with paths that a run finds again from another folder, and the full name of timm's weights."""
    paths: dict[str, Any] = {}
    weights = f"{TIMM}{config.encoder or ENCODER}" if config.weights == "timm" else config.weights
    if (name := timm_name(weights)) is not None:
        weights = f"{TIMM}{full_name(name)}"
    elif weights is not None:
        weights = absolute_source(os.fspath(weights))
    for name in ("monitor", "teacher"):
        path = getattr(config, name)
        if path is not None:
            paths[name] = absolute_source(os.fspath(path))
    return replace(config, weights=weights, **paths)


def _begun_model(
    config: ResolvedConfig,
    images: ImageSet,
    teacher: Classifier | None,
    module: nn.Module | None,
    stored: RunConfig | None,
    run: Run,
) -> SimCLR:
    """The model before its first step. A run that resumes from a checkpoint no longer needs the weights it began with.

    They may be gone by then: the run was moved to another machine, or timm's file is missing and there is no network.
    """
    if stored is None or stored.began_as is None or not checkpoints(run.folder / "checkpoint"):
        return build_model(config, images, teacher, module)
    model = build_model(replace(config, weights=None), images, teacher, module)
    model.encoder.weights = stored.began_as
    return model


def _decoded(images: ImageSet, config: ResolvedConfig, printer: Printer) -> ImageSet:
    """The images decoded for views of this size, in the cache where they fit; unreadable ones are reported."""
    budget = int(config.cache_gib * 2**30)
    decoded = images.decoded(source_side(config.size), budget=budget, progress=printer.decoded).openable()
    for line in decoded.ledger.lines_of_read():
        printer.say(line)
    return decoded


def _run_config(
    config: ResolvedConfig, images: ImageSet, limit: int | None, model: SimCLR, views: Views, world: World
) -> RunConfig:
    """config.json: every setting as decided, the images, the machine."""
    encoder = model.encoder
    settings = asdict(config) | {"stem": encoder.stem}
    if OBJECTIVES[config.loss].contrastive:
        settings["head"] = head_text(config, encoder)
    return RunConfig(
        **settings,
        features=encoder.num_features,
        source=sources_of(images),
        classes=encoder.classes,
        labeled=int((images.labels >= 0).sum()),
        limit=limit,
        images=len(images),
        skipped=len(images.skipped),
        names_checksum=images.names_checksum(),
        began_as=encoder.weights,
        labels=[absolute_source(name) for name in images.labeling.labeled] if images.labeling else [],
        split=images.labeling.split if images.labeling else None,
        labels_checksum=images.labels_checksum(),
        steps_per_epoch=steps_per_epoch(len(images), config.batch_size),
        renderer=views.renderer,
        threads=torch.get_num_threads(),
        ranks=world.size,
        device=default_device().type,
        versions=software(),
    )


def _check_enough(images: ImageSet, config: ResolvedConfig, world: World) -> None:
    if len(images) < 2:
        raise StepclrError(f"{images.source} has {len(images)} image; contrastive learning needs at least 2")
    batch = min(config.batch_size, len(images))
    if batch < world.size:
        raise StepclrError(f"{world.size} ranks cannot share a batch of {batch}: use fewer, or a larger batch_size")


def _save(
    run: Run, config: ResolvedConfig, images: ImageSet, model: SimCLR, teacher: Classifier | None, printer: Printer
) -> None:
    """Write the encoder and, where there is a linear layer, the classifier."""
    encoder, head, classifier = model.encoder, model.head, None
    save_encoder(encoder, run.folder / ENCODER_FILE)
    if isinstance(head, nn.Linear):
        classifier = Classifier(encoder, teacher.classes if teacher else images.classes)
        classifier.linear = head
        classifier.min_area, classifier.flip = config.min_area, read_policy(config.policy).flip
    elif config.linear_epochs:
        printer.say(f"second stage: a linear layer on the frozen encoder, {counted(config.linear_epochs, 'epoch')}")
        classifier = linear_layer(encoder, images, config.linear_epochs, config)
        if not is_finite(classifier):
            raise Diverged("the second stage diverged: a weight of its linear layer is not finite; try a lower lr")
    if classifier:
        save_classifier(classifier, run.folder / CLASSIFIER)
