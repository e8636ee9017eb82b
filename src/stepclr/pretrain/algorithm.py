"""SimCLR Algorithm 1, and around it what makes it a run: settings, log, checkpoints, interruption."""

import json
import os
from collections.abc import Sequence
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
from stepclr.loss import nt_xent, supcon
from stepclr.model import save_encoder
from stepclr.pretrain.checkpoint import load_checkpoint, save_checkpoint
from stepclr.pretrain.feed import batches, steps_per_epoch
from stepclr.pretrain.folder import Run
from stepclr.pretrain.interrupt import Interruption
from stepclr.pretrain.meter import Meter
from stepclr.pretrain.monitor import Monitor
from stepclr.pretrain.optimizer import build_optimizer, peak_rate, rate_at
from stepclr.pretrain.progress import Progress
from stepclr.pretrain.settle import (
    build,
    check_same_pictures,
    describe,
    device_for_training,
    encoder_of,
    resumed,
    settle,
    threads,
)
from stepclr.recipes import recipe_config
from stepclr.signals import alignment, contrastive_top1, uniformity
from stepclr.views import Views, view_keys

LOG_EVERY = 10  # steps
CHECKPOINT_AFTER = 600  # seconds without one; each epoch ends with one anyway


class Diverged(RuntimeError):
    """The loss is not a finite number any more; the checkpoints are from before that."""


def train_step(
    model: nn.ModuleDict,
    views: Views,
    optimizer: Optimizer,
    config: PretrainConfig,
    pictures: Tensor | Sequence[Tensor],
    keys: Int64[Tensor, " n"],
    labels: Int64[Tensor, " n"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """One pass of Algorithm 1's loop over a batch of N pictures: the loss, and the projections it was made of."""
    encoder, head = model["encoder"], model["head"]
    view_i, view_j = views(pictures, keys)  # t, t' ~ T
    x = torch.cat([view_i, view_j]).contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        h = encoder(x)  # [2N, F]: both views in one batch, or BatchNorm would tell them apart
        z_i, z_j = head(h).chunk(2)  # [N, D] each
    if config.loss == "supcon":
        loss = supcon(z_i, z_j, labels, config.temperature)  # SupCon eq. 2
    else:
        loss = nt_xent(z_i, z_j, config.temperature)  # eq. 1
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), z_i.detach(), z_j.detach()


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
        options: fields of `PretrainConfig`, as `epochs=100`, `encoder="resnet50"`.

    Returns the run. Raises StepclrError for input that cannot be used, `Diverged` when the loss is not finite, and
    `Interrupted` (a KeyboardInterrupt) after Ctrl-C or SIGTERM, when a checkpoint has been written.
    """
    run = Run(Path(out))
    run.check_free(resume)
    stored = run.config if resume and run.exists() else None
    for name in options:
        choose("option", name, [field.name for field in fields(PretrainConfig)])
    config = config or (stored_config(run.folder) if stored else None) or recipe_config(recipe)
    config = replace(config, **options)
    if stored:
        config = resumed(config, stored, run)
        classes, limit = stored["classes"] or None, stored["limit"]
    images = open_images(images, classes=classes, limit=limit)
    config = settle(config, images)
    report = Progress(progress)
    watched = open_images(config.monitor, classes=images.chosen) if config.monitor else None
    views = Views(config.policy, config.view_size, config.strength, config.blur, config.min_area)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build(config, images)
        images = report.while_decoding(images, 2 * views.size, config.cache_gib)
        watched = report.while_decoding(watched, 2 * views.size, config.cache_gib) if watched else images
        if len(images) < 2:
            raise StepclrError(f"{images.source} has {len(images)} picture: a contrast needs at least 2")
        facts = describe(config, images, limit, model)
        if stored:
            check_same_pictures(facts, stored, run)
        else:
            run.write("config.json", json.dumps(facts, indent=2))
        images.list_skipped(run.folder / "skipped.csv")
        with threads((stored or facts)["threads"]):
            _train(run, config, images, watched, views, model, report)
    save_encoder(encoder_of(model).cpu(), run.folder / "encoder.safetensors")
    images.list_skipped(run.folder / "skipped.csv")
    return run


def _train(
    run: Run,
    config: PretrainConfig,
    images: ImageSet,
    watched: ImageSet,
    views: Views,
    model: nn.ModuleDict,
    report: Progress,
) -> None:
    """Algorithm 1's loop, from the newest checkpoint to the last step."""
    device = device_for_training()
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(model, config)
    step, facts = load_checkpoint(run.folder / "checkpoint", model, optimizer)
    run.cut_metrics(step)
    labels = torch.from_numpy(images.labels).to(device)
    per_epoch = steps_per_epoch(len(images), config.batch_size)
    steps, warmup_steps = config.epochs * per_epoch, round(config.warmup_epochs * per_epoch)
    peak = peak_rate(config)
    kept = [e * per_epoch for e in range(0, config.epochs, config.keep_every)] if config.keep_every else []
    monitor = Monitor(watched) if Monitor.can_watch(watched) else None
    meter = Meter(facts.get("seconds", 0.0))
    report.start(config, run, step, steps, len(images), monitor is not None)

    losses: list[Tensor] = []  # since the last look at them: each look makes a GPU wait
    with Interruption() as interruption, report:
        for epoch in range(step // per_epoch, config.epochs):
            feed = batches(images, config.seed, epoch, config.batch_size, start=step % per_epoch)
            for pictures, indices in meter.watch(feed):
                rate = rate_at(step, steps, warmup_steps, peak)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                # What dropout or drop-path draw depends on the step alone too.
                torch.manual_seed(int(view_keys(config.seed, step, [-1])[0]))
                keys = view_keys(config.seed, epoch, indices)
                loss, z_i, z_j = train_step(
                    model, views, optimizer, config, _to(device, pictures), keys, labels[indices]
                )
                step += 1
                losses.append(loss)
                epoch_ends = step % per_epoch == 0
                logs = epoch_ends or step % LOG_EVERY == 0
                saves = epoch_ends or interruption.requested or meter.since_checkpoint() > CHECKPOINT_AFTER
                if logs or saves:
                    _check_finite(losses, model, step, rate, run)
                    losses.clear()
                if logs:
                    line = {"step": step, "epoch": epoch + 1, "loss": loss.item(), "lr": rate, **meter.read()}
                    line |= _signals(z_i, z_j)
                    if epoch_ends and monitor and _is_watched(epoch, config.epochs):
                        line |= monitor(encoder_of(model), config.precision)
                    run.log(line)
                    report.line(line, steps)
                    meter.restart()
                if saves:
                    state = {"seconds": meter.seconds}
                    save_checkpoint(run.folder / "checkpoint", step, model, optimizer, state, kept)
                    meter.saved()
                if interruption.requested and step < steps:
                    raise interruption.error(step, steps, run.folder)


def _signals(z_i: Float[Tensor, "n d"], z_j: Float[Tensor, "n d"]) -> dict[str, float]:
    return {
        "contrastive_top1": contrastive_top1(z_i, z_j).item(),
        "alignment": alignment(z_i, z_j).item(),
        "uniformity": uniformity(torch.cat([z_i, z_j])).item(),
    }


def _check_finite(losses: list[Tensor], model: nn.ModuleDict, step: int, rate: float, run: Run) -> None:
    """Raise `Diverged` if a loss or, after them, a weight is not finite: such a state is neither logged nor saved."""
    finite = torch.stack(losses).isfinite().tolist()
    first = step - len(losses) + 1
    if all(finite):
        if all(bool(weight.isfinite().all()) for weight in model.parameters()):
            return
        what, when = "a weight is not finite", step
    else:
        what, when = "the loss is not finite", first + finite.index(False)
    raise Diverged(
        f"{what} at step {when} (learning rate {rate:.4g}): try a lower --lr, a longer --warmup or --precision fp32; "
        f"the last good checkpoint is in {run.folder / 'checkpoint'}"
    )


def _is_watched(epoch: int, epochs: int) -> bool:
    """About ten times a run, and after the last epoch."""
    return (epoch + 1) % max(1, epochs // 10) == 0 or epoch + 1 == epochs


def _to(device: torch.device, pictures: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(pictures, Tensor):
        return pictures.to(device, non_blocking=True)
    return [picture.to(device, non_blocking=True) for picture in pictures]
