"""SimCLR Algorithm 1, and around it what makes it a run: settings, log, checkpoints, interruption."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from stepclr.config import PretrainConfig, stored_config
from stepclr.data import ImageSet, Source, open_images
from stepclr.errors import StepclrError, choose
from stepclr.loss import cross_entropy, distillation, nt_xent, supcon
from stepclr.model import Classifier, load_classifier, save_classifier, save_encoder
from stepclr.pretrain.checkpoint import load_checkpoint, save_checkpoint
from stepclr.pretrain.feed import batches, steps_per_epoch
from stepclr.pretrain.folder import Run
from stepclr.pretrain.interrupt import Interruption
from stepclr.pretrain.kept_memory import kept_memory
from stepclr.pretrain.meter import Meter
from stepclr.pretrain.micro_batches import counted_once, in_micro_batches
from stepclr.pretrain.monitor import Monitor
from stepclr.pretrain.optimizer import build_optimizer, peak_rate, rate_at, set_rate
from stepclr.pretrain.profile import Profile, ViewsOf
from stepclr.pretrain.progress import Progress
from stepclr.pretrain.resident import on_device
from stepclr.pretrain.settle import (
    CONTRASTIVE,
    build,
    check_same_pictures,
    describe,
    device_for_training,
    encoder_of,
    growing,
    resumed,
    settle,
    threads,
    views_of,
)
from stepclr.pretrain.supervised import linear_layer
from stepclr.recipes import recipe_config
from stepclr.signals import alignment, contrastive_top1, uniformity
from stepclr.views import Views, policy_name, view_keys
from stepclr.views.batched import compiles, to_device

LOG_EVERY = 10  # steps
MOST_LOST = 0.05  # of the pictures; more that can no longer be read end a run: it would be another one
CHECKPOINT_AFTER = 600  # seconds without one; each epoch ends with one anyway,
SOON = 30  # but on a GPU, where an epoch may take 2 seconds, only if the last is so many seconds old


class Diverged(RuntimeError):
    """The loss is not a finite number any more; the checkpoints are from before that."""


def train_step(
    model: nn.ModuleDict,
    views: ViewsOf,
    optimizer: Optimizer,
    config: PretrainConfig,
    pictures: Tensor | Sequence[Tensor],
    keys: Int64[Tensor, " n"],
    labels: Int64[Tensor, " n"],
    teacher: Classifier | None = None,
) -> tuple[Float[Tensor, ""], list[Float[Tensor, "n d"]]]:
    """One pass of Algorithm 1's loop over a batch of N pictures: the loss, and each view's projections (or logits)."""
    encoder, head = model["encoder"], model["head"]

    def encode(pictures: Tensor | Sequence[Tensor], keys: Int64[Tensor, " n"]) -> tuple[Tensor, ...]:
        view_i, *view_j = views(pictures, keys)  # t, t' ~ T: view_j is one in the paper, and all further ones here
        x = torch.cat([view_i, *view_j]).contiguous(memory_format=torch.channels_last)
        with _autocast(config, x):
            h = encoder(x)  # [VN, F]: all views in one batch, or BatchNorm would tell them apart
        seen = (h, _taught(teacher, x, config)) if teacher else (h,)
        return tuple(rows.unflatten(0, (config.views, -1)) for rows in seen)

    h, *taught = in_micro_batches(encode, pictures, keys, config.micro_batch, encoder)  # [V, N, F]
    with _autocast(config, h):
        z_i, *z_j = head(h.flatten(0, 1)).chunk(config.views)  # [N, D] each
    if config.loss == "nt_xent":
        loss = nt_xent(z_i, z_j, config.temperature)  # eq. 1
    elif config.loss == "supcon":
        loss = supcon(z_i, z_j, labels, config.temperature)  # SupCon eq. 2
    elif not taught:
        loss = cross_entropy(torch.cat([z_i, *z_j]), labels.repeat(config.views))
    else:
        loss = distillation(torch.cat([z_i, *z_j]), taught[0].flatten(0, 1), config.temperature)  # SimCLRv2 eq. 2
    optimizer.zero_grad()
    with counted_once(encoder) if config.checkpoint_activations or config.micro_batch else nullcontext():
        loss.backward()
    optimizer.step()
    return loss.detach(), [z.detach() for z in (z_i, *z_j)]


def _taught(teacher: Classifier, x: Float[Tensor, "m 3 s s"], config: PretrainConfig) -> Float[Tensor, "m c"]:
    with torch.no_grad(), _autocast(config, x):
        logits: Tensor = teacher(x)
    return logits


def _autocast(config: PretrainConfig, x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16")


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
    **options: Any,
) -> Run:
    """Pretrain an encoder on pictures without labels (SimCLR Algorithm 1) into the run folder `out`.

    Args:
        images: an `ImageSet`, or anything `open_images` takes; `classes` and `limit` choose among its pictures.
        out: the run's folder. It must not hold another run.
        recipe: name of a recipe (`stepclr.recipes`) that gives the defaults.
        config: all settings at once, instead of `recipe`; `options` change it.
        resume: go on from the newest checkpoint in `out`; from step 0 where there is none. On CPU the run then ends
            bit for bit as one that never stopped. Its settings stay, but for epochs, keep_every, monitor and cache_gib.
        progress: print settings and progress to standard error.
        profile: print where a step's time went, at the end of the training.
        options: fields of `PretrainConfig`, as `epochs=100`, `encoder="resnet50"`; `policy` may be a list of ops.

    Returns the run. Raises StepclrError for input that cannot be used, `Diverged` when the loss is not finite, and
    `Interrupted` (a KeyboardInterrupt) after Ctrl-C or SIGTERM, when a checkpoint has been written.
    """
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
    report = Progress(progress)
    watched = open_images(config.monitor, classes=images.chosen) if config.monitor else None
    # Runs from before there was a choice began with torch's.
    views = views_of(config, stored.get("renderer", "torch") if stored else "auto")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build(config, images, teacher)
        images = report.while_decoding(images, 2 * views.size, config.cache_gib)
        watched = report.while_decoding(watched, 2 * views.size, config.cache_gib) if watched else images
        if len(images) < 2:
            raise StepclrError(f"{images.source} has {len(images)} picture: a contrast needs at least 2")
        facts = describe(config, images, limit, model, views)
        if stored:
            check_same_pictures(facts, stored, run)
        else:
            run.write("config.json", json.dumps(facts, indent=2))
        images.list_skipped(run.folder / "skipped.csv")
        with run.held(), threads((stored or facts)["threads"]):
            _train(run, config, images, watched, views, model, teacher, report, profile)
            encoder, head, classifier = encoder_of(model), model["head"], None
            save_encoder(encoder, run.folder / "encoder.safetensors")
            if isinstance(head, nn.Linear):
                classifier = Classifier(encoder, teacher.classes if teacher else images.classes)
                classifier.linear = head
            elif config.linear_epochs:
                report.console.print(
                    f"second stage: a linear layer on the frozen encoder, {config.linear_epochs} epochs"
                )
                classifier = linear_layer(encoder, images, config.linear_epochs, config)
            if classifier:
                save_classifier(classifier, run.folder / "classifier.safetensors")
    images.list_skipped(run.folder / "skipped.csv")
    return run


def _train(
    run: Run,
    config: PretrainConfig,
    images: ImageSet,
    watched: ImageSet,
    views: Views,
    model: nn.ModuleDict,
    teacher: Classifier | None,
    report: Progress,
    profile: bool,
) -> None:
    """Algorithm 1's loop, from the newest checkpoint to the last step."""
    device = device_for_training()
    for module in (model.train(), teacher.eval() if teacher else nn.Identity()):
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, config)
    step, facts = load_checkpoint(run.folder / "checkpoint", model, optimizer, report.say)
    run.cut_metrics(step)
    per_epoch = steps_per_epoch(len(images), config.batch_size)
    steps, warmup_steps = config.epochs * per_epoch, round(config.warmup_epochs * per_epoch)
    peak = peak_rate(config)
    kept = [e * per_epoch for e in range(0, config.epochs, config.keep_every)] if config.keep_every else []
    fed = on_device(images, device)
    watched = fed if watched is images else on_device(watched, device)
    monitor = Monitor(watched) if Monitor.can_watch(watched) else None
    trained = _compiled(model) if compiles(device) and not config.checkpoint_activations else model
    meter = Meter(facts.get("seconds", 0.0))
    report.start(config, run, views, step, steps, len(images), monitor is not None)
    clock = Profile(device) if profile else None
    stages: list[tuple[float, ViewsOf]] = [
        (until, clock.views(own) if clock else own) for until, own in growing(config, views)
    ]

    unread = len(fed.skipped)
    losses: list[Tensor] = []  # since the last look at them: each look makes a GPU wait
    with (
        Interruption() as interruption,
        report,
        clock.attached(trained, optimizer, report.say) if clock else nullcontext(),
        nullcontext() if config.micro_batch or config.checkpoint_activations else kept_memory(),  # they want it small
    ):
        for epoch in range(step // per_epoch, config.epochs):
            feed = batches(fed, config.seed, epoch, config.batch_size, step % per_epoch, config.balanced, device)
            feed = meter.watch(feed)
            for pictures, places in clock.feed(feed) if clock else feed:
                _check_readable(fed, unread, step, run)
                rate = rate_at(step, steps, warmup_steps, peak)
                set_rate(optimizer, rate)
                # What dropout or drop-path draw depends on the step alone too.
                torch.manual_seed(int(view_keys(config.seed, step, [-1])[0]))
                keys = view_keys(config.seed, epoch, places)
                take_views = next(own for until, own in stages if step < until * steps)
                known = to_device(images.labels[places % len(images)], device)
                loss, z = train_step(trained, take_views, optimizer, config, pictures, keys, known, teacher)
                step += 1
                losses.append(loss)
                epoch_ends = step % per_epoch == 0
                logs = epoch_ends or step % LOG_EVERY == 0
                due = device.type == "cpu" or meter.since_checkpoint() > SOON or step in (steps, *kept)
                saves = (epoch_ends and due) or interruption.requested or meter.since_checkpoint() > CHECKPOINT_AFTER
                if logs or saves:
                    _check_finite(losses, model, step, rate, run)
                    losses.clear()
                if logs:
                    line = {"step": step, "epoch": epoch + 1, "loss": loss.item(), "lr": rate, **meter.read()}
                    line |= _signals(config, z, known)
                    if epoch_ends and monitor and _is_watched(epoch, config.epochs):
                        line |= monitor(encoder_of(model), config.precision)
                    run.log(line)
                    report.line(line, steps)
                    meter.restart()
                if saves:
                    state = {"seconds": meter.total()}
                    save_checkpoint(run.folder / "checkpoint", step, model, optimizer, state, kept)
                    meter.saved()
                if interruption.requested and step < steps:
                    raise interruption.error(step, steps, run.folder)


def _compiled(model: nn.ModuleDict) -> nn.ModuleDict:
    """The same weights, compiled; `model` itself stays plain, for checkpoints and evaluation at other shapes."""
    torch.backends.cudnn.benchmark = True
    faster = nn.ModuleDict()
    for name, part in model.items():
        compiled: Any = torch.compile(part, dynamic=False)
        faster[name] = compiled
    return faster


def _signals(config: PretrainConfig, z: list[Float[Tensor, "n d"]], labels: Int64[Tensor, " n"]) -> dict[str, float]:
    """What a batch's first two views tell of the learning; of logits, the share of the labelled that they get right."""
    if config.loss in CONTRASTIVE:
        names = ("contrastive_top1", "alignment", "uniformity")
        values = contrastive_top1(z[0], z[1]), alignment(z[0], z[1]), uniformity(torch.cat(z[:2]))
        return dict(zip(names, torch.stack([value.double() for value in values]).tolist(), strict=True))
    known = labels >= 0
    right = (z[0].argmax(1) == labels)[known].double().mean().item() if bool(known.any()) else None
    return {} if config.loss == "distill" or right is None else {"top1": right}


def _check_finite(losses: list[Tensor], model: nn.ModuleDict, step: int, rate: float, run: Run) -> None:
    """Raise `Diverged` if a loss or, after them, a weight is not finite: such a state is neither logged nor saved."""
    finite = torch.stack(losses).isfinite().tolist()
    first = step - len(losses) + 1
    if all(finite):
        if bool(torch.stack([weight.isfinite().all() for weight in model.parameters()]).all()):
            return
        what, when = "a weight is not finite", step
    else:
        what, when = "the loss is not finite", first + finite.index(False)
    raise Diverged(
        f"{what} at step {when} (learning rate {rate:.4g}): try a lower --lr, a longer --warmup or --precision fp32; "
        f"the last good checkpoint is in {run.folder / 'checkpoint'}"
    )


def _check_readable(images: ImageSet, before: int, step: int, run: Run) -> None:
    """Raise StepclrError if more than MOST_LOST of the pictures have become unreadable since the run began to read."""
    lost = len(images.skipped) - before
    if lost > MOST_LOST * len(images):
        images.list_skipped(run.folder / "skipped.csv")
        name, reason = images.skipped[-1]
        raise StepclrError(
            f"{lost} of {len(images)} pictures of {images.source} can no longer be read, as {name}: {reason}; stopped "
            f"at step {step}: bring them back, and the same command with --resume goes on"
        )


def _is_watched(epoch: int, epochs: int) -> bool:
    """About ten times a run, and after the last epoch."""
    return (epoch + 1) % max(1, epochs // 10) == 0 or epoch + 1 == epochs
