"""SimCLR Algorithm 1, and its loop: log, checkpoints, interruption."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from stepclr.config import PretrainConfig
from stepclr.data.images import ImageSet
from stepclr.device import default_device
from stepclr.distributed import ALONE, World
from stepclr.errors import StepclrError
from stepclr.loss.contrastive import nt_xent, supcon
from stepclr.loss.logits import cross_entropy, distillation
from stepclr.metrics import alignment, contrastive_top1, uniformity
from stepclr.model.classifier import Classifier
from stepclr.pretraining.batches import batches, steps_per_epoch
from stepclr.pretraining.checkpoint import load_checkpoint, save_checkpoint
from stepclr.pretraining.ddp import averaged, synchronise_norms
from stepclr.pretraining.gpu_cache import on_device
from stepclr.pretraining.gradcache import counted_once, in_micro_batches
from stepclr.pretraining.interrupt import Interruption, interrupted
from stepclr.pretraining.malloc import kept_memory
from stepclr.pretraining.meter import Meter
from stepclr.pretraining.monitor import Monitor
from stepclr.pretraining.optim import build_optimizer, peak_rate, rate_at, set_rate
from stepclr.pretraining.profile import Profile, ViewsOf
from stepclr.pretraining.progress import Progress
from stepclr.pretraining.resolve import CONTRASTIVE, encoder_of, growing
from stepclr.pretraining.run import Run
from stepclr.views.cuda import compiles, to_device
from stepclr.views.keys import view_keys
from stepclr.views.views import Views

LOG_EVERY = 10  # steps
MOST_LOST = 0.05  # of the images; more that can no longer be read end a run: it would be another one
CHECKPOINT_AFTER = 600  # seconds without one; each epoch ends with one anyway,
SOON = 30  # but on a GPU, where an epoch may take 2 seconds, only if the last is so many seconds old


class Diverged(RuntimeError):
    """The loss is not a finite number any more; the checkpoints are from before that."""


def contrast(
    model: nn.ModuleDict,
    views: ViewsOf,
    config: PretrainConfig,
    images: Tensor | Sequence[Tensor],
    keys: Int64[Tensor, " n"],
    labels: Int64[Tensor, " n"],
    teacher: Classifier | None = None,
    world: World = ALONE,
) -> tuple[Float[Tensor, ""], list[Float[Tensor, "n d"]]]:
    """The body of Algorithm 1's loop: a batch of N images -> the loss, and each view's projections (or logits).

    Of many ranks each brings its own N images, and the loss is that of all of them.
    """
    encoder, head = model["encoder"], model["head"]

    def encode(images: Tensor | Sequence[Tensor], keys: Int64[Tensor, " n"]) -> tuple[Tensor, ...]:
        view_i, *view_j = views(images, keys)  # t, t' ~ T: view_j is one in the paper, and all further ones here
        x = torch.cat([view_i, *view_j]).contiguous(memory_format=torch.channels_last)
        with _autocast(config, x):
            h = encoder(x)  # [VN, F]: all views in one batch, or BatchNorm would tell them apart
        seen = (h, _taught(teacher, x, config)) if teacher else (h,)
        return tuple(rows.unflatten(0, (config.views, -1)) for rows in seen)

    h, *taught = in_micro_batches(encode, images, keys, config.micro_batch, encoder, world)  # [V, N, F]
    with _autocast(config, h):
        z_i, *z_j = head(h.flatten(0, 1)).chunk(config.views)  # [N, D] each
    if config.loss == "nt_xent":
        loss = nt_xent(z_i, z_j, config.temperature, world)  # eq. 1
    elif config.loss == "supcon":
        loss = supcon(z_i, z_j, labels, config.temperature, world=world)  # SupCon eq. 2
    elif not taught:
        loss = cross_entropy(torch.cat([z_i, *z_j]), labels.repeat(config.views), world)
    else:
        seen = taught[0].flatten(0, 1)
        loss = distillation(torch.cat([z_i, *z_j]), seen, config.temperature, world)  # SimCLRv2 eq. 2
    return loss, [z_i, *z_j]


def train_step(
    model: nn.ModuleDict,
    views: ViewsOf,
    optimizer: Optimizer,
    config: PretrainConfig,
    images: Tensor | Sequence[Tensor],
    keys: Int64[Tensor, " n"],
    labels: Int64[Tensor, " n"],
    teacher: Classifier | None = None,
    world: World = ALONE,
    contrast: Callable[..., Any] = contrast,
) -> tuple[Float[Tensor, ""], list[Float[Tensor, "n d"]]]:
    """One step of Algorithm 1: `contrast` (of many ranks: `averaged`), its gradient, and the optimizer's update."""
    loss, z = contrast(model, views, config, images, keys, labels, teacher, world)
    optimizer.zero_grad()
    with counted_once(model["encoder"]) if config.checkpoint_activations or config.micro_batch else nullcontext():
        loss.backward()
    optimizer.step()
    return loss.detach(), [rows.detach() for rows in z]


def _taught(teacher: Classifier, x: Float[Tensor, "m 3 s s"], config: PretrainConfig) -> Float[Tensor, "m c"]:
    with torch.no_grad(), _autocast(config, x):
        logits: Tensor = teacher(x)
    return logits


def _autocast(config: PretrainConfig, x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16")


def train(
    run: Run,
    config: PretrainConfig,
    images: ImageSet,
    watched: ImageSet,
    views: Views,
    model: nn.ModuleDict,
    teacher: Classifier | None,
    report: Progress,
    profile: bool,
    world: World,
) -> None:
    """Algorithm 1's loop, from the newest checkpoint to the last step."""
    device = default_device()
    for module in (model.train(), teacher.eval() if teacher else nn.Identity()):
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if world.size > 1:
        synchronise_norms(model, world)
    optimizer = build_optimizer(model, config)
    step, facts = load_checkpoint(run.folder / "checkpoint", model, optimizer, report.say)
    world.check_same({"step": step})  # else they do not see the same folder
    if world.first:
        run.cut_metrics(step)
    per_epoch = steps_per_epoch(len(images), config.batch_size)
    steps, warmup_steps = config.epochs * per_epoch, round(config.warmup_epochs * per_epoch)
    peak = peak_rate(config)
    kept = [e * per_epoch for e in range(0, config.epochs, config.keep_every)] if config.keep_every else []
    fed = on_device(images, device)
    watched = fed if watched is images else on_device(watched, device)
    monitor = Monitor(watched) if Monitor.can_watch(watched) else None
    trained = _compiled(model) if compiles(device) and not config.checkpoint_activations else model
    forward = averaged(trained, contrast) if world.size > 1 else contrast
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
            feed = batches(fed, config.seed, epoch, config.batch_size, step % per_epoch, config.balanced, device, world)
            feed = meter.watch(feed)
            for pixels, places in clock.feed(feed) if clock else feed:
                _check_readable(fed, unread, step, run, world)
                rate = rate_at(step, steps, warmup_steps, peak)
                set_rate(optimizer, rate)
                # What dropout or drop-path draw depends on the step alone too.
                torch.manual_seed(int(view_keys(config.seed, step, [-1 - world.rank])[0]))
                keys = view_keys(config.seed, epoch, places)
                take_views = next(own for until, own in stages if step < until * steps)
                known = to_device(images.labels[places % len(images)], device)
                loss, z = train_step(
                    trained, take_views, optimizer, config, pixels, keys, known, teacher, world, forward
                )
                step += 1
                stop = int(max(world.numbers(interruption.requested)))  # all stop after the same step
                losses.append(loss)
                epoch_ends = step % per_epoch == 0
                logs = epoch_ends or step % LOG_EVERY == 0
                due = device.type == "cpu" or meter.since_checkpoint() > SOON or step in (steps, *kept)
                saves = (epoch_ends and due) or stop or meter.since_checkpoint() > CHECKPOINT_AFTER
                if logs or saves:
                    _check_finite(losses, model, step, rate, run)
                    losses.clear()
                if logs:
                    line = {"step": step, "epoch": epoch + 1, "loss": loss.item(), "lr": rate, **meter.read()}
                    line["images_per_second"] = world.total(line["images_per_second"])
                    line |= _signals(config, z, known, world)
                    if epoch_ends and monitor and _is_watched(epoch, config.epochs):
                        line |= monitor(encoder_of(model), config.precision, world)
                    if world.first:
                        run.log(line)
                    report.line(line, steps)
                    meter.restart()
                if saves and world.first:
                    state = {"seconds": meter.total()}
                    save_checkpoint(run.folder / "checkpoint", step, model, optimizer, state, kept)
                    meter.saved()
                if stop and step < steps:
                    raise interrupted(stop, step, steps, run.folder)


def _compiled(model: nn.ModuleDict) -> nn.ModuleDict:
    """The same weights, compiled; `model` itself stays plain, for checkpoints and evaluation at other shapes."""
    torch.backends.cudnn.benchmark = True
    faster = nn.ModuleDict()
    for name, part in model.items():
        compiled: Any = torch.compile(part, dynamic=False)
        faster[name] = compiled
    return faster


def _signals(
    config: PretrainConfig, z: list[Float[Tensor, "n d"]], labels: Int64[Tensor, " n"], world: World
) -> dict[str, float]:
    """What a batch's first two views tell of the learning; of logits, the share of the labelled that they get right."""
    sizes = world.sizes(len(labels))
    labels, z_i, *z_j = (world.gather(rows, sizes) for rows in (labels, *z))
    if config.loss in CONTRASTIVE:
        names = ("contrastive_top1", "alignment", "uniformity")
        values = contrastive_top1(z_i, z_j[0]), alignment(z_i, z_j[0]), uniformity(torch.cat([z_i, z_j[0]]))
        told = dict(zip(names, torch.stack([value.double() for value in values]).tolist(), strict=True))
        return {**told, "negatives": config.views * (len(labels) - _alike(labels, config.loss))}  # of an anchor
    known = labels >= 0
    right = (z_i.argmax(1) == labels)[known].double().mean().item() if bool(known.any()) else None
    return {} if config.loss == "distill" or right is None else {"top1": right}


def _alike(labels: Int64[Tensor, " n"], loss: str) -> float:
    """How many images of the batch, itself included, are an image's positives, on average."""
    if loss == "nt_xent":
        return 1.0
    _, images = labels[labels >= 0].unique(return_counts=True)  # of each class
    return 1 + float((images * (images - 1)).sum()) / len(labels)


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


def _check_readable(images: ImageSet, before: int, step: int, run: Run, world: World) -> None:
    """Raise StepclrError if more than MOST_LOST of the images have become unreadable since the run began to read."""
    lost = world.total(len(images.skipped) - before)
    if lost > MOST_LOST * len(images):
        list_skipped(images, run, world)
        name, reason = images.skipped[-1]
        raise StepclrError(
            f"{lost:.0f} of {len(images)} images of {images.source} can no longer be read, as {name}: {reason}; "
            f"stopped at step {step}: bring them back, and the same command with --resume goes on"
        )


def _is_watched(epoch: int, epochs: int) -> bool:
    """About ten times a run, and after the last epoch."""
    return (epoch + 1) % max(1, epochs // 10) == 0 or epoch + 1 == epochs


def list_skipped(images: ImageSet, run: Run, world: World) -> None:
    """skipped.csv, with what any rank could not read."""
    images.skipped = world.union(images.skipped)
    if world.first:
        images.list_skipped(run.folder / "skipped.csv")
