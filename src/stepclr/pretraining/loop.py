"""The loop around Algorithm 1: learning rate, metrics, checkpoints, interruption. `step.py` is what it repeats."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepclr.config import ResolvedConfig, total_steps
from stepclr.data.images import ImageSet
from stepclr.device import compiles, cudnn_benchmark, default_device
from stepclr.distributed import World
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.classifier import Classifier
from stepclr.model.cpu_conv import cpu_convolutions
from stepclr.model.cpu_norm import cpu_norms
from stepclr.model.features import NotFiniteError, check_represents
from stepclr.model.weights import is_finite
from stepclr.pretraining.batches import Batch, batches, steps_per_epoch
from stepclr.pretraining.checkpoint import load_checkpoint, save_checkpoint
from stepclr.pretraining.ddp import averaged, stride_warnings_off, synchronize_norms
from stepclr.pretraining.gpu_cache import on_device
from stepclr.pretraining.gradcache import simclr_step_in_parts, statistics_kept, teacher_logits
from stepclr.pretraining.interrupt import Interrupted, Interruption
from stepclr.pretraining.logging import Meter, Printer
from stepclr.pretraining.malloc import freed_memory_kept
from stepclr.pretraining.model import SimCLR
from stepclr.pretraining.monitor import Monitor, batch_metrics
from stepclr.pretraining.optim import build_optimizer, lr_multiplier, set_lr
from stepclr.pretraining.profile import Profile
from stepclr.pretraining.resolve import stages_of
from stepclr.pretraining.run import LostImages, Run
from stepclr.pretraining.step import simclr_step
from stepclr.views.keys import view_keys
from stepclr.views.views import Views

# One step: (optimizer, views, batch, its views' keys) -> loss and projections.
TakeStep = Callable[[Optimizer, Any, Batch, Tensor], tuple[Tensor, list[Tensor]]]

LOG_EVERY = 10  # steps
# A checkpoint is written at the end of each epoch, and in a longer epoch after this many seconds. On a GPU, where an
# epoch may take 2 seconds, the end of an epoch writes one only if the last one is older than SOON seconds.
CHECKPOINT_AFTER, SOON = 600, 30


class Diverged(RuntimeError):
    """The loss is no longer a finite number; earlier checkpoints are kept."""


@dataclass(frozen=True)
class Schedule:
    """How many steps a run takes, and at which of them something happens; steps are counted from 1 when done."""

    per_epoch: int
    steps: int
    warmup_steps: int
    kept: Sequence[int]
    """Steps whose checkpoints stay."""

    @classmethod
    def of(cls, config: ResolvedConfig, n: int) -> "Schedule":
        """The schedule of a run on n images."""
        per_epoch = steps_per_epoch(n, config.batch_size)
        steps = total_steps(config.epochs, per_epoch)
        interval = (config.keep_every or 0) * per_epoch
        kept = range(interval, steps + 1, interval) if interval else ()
        return cls(per_epoch, steps, warmup_steps=round(config.warmup * per_epoch), kept=kept)

    @property
    def epochs(self) -> int:
        """The epochs, of which the last may end early."""
        return -(-self.steps // self.per_epoch)

    def epoch_ends(self, step: int) -> bool:
        return step % self.per_epoch == 0

    @property
    def watch_every(self) -> int:
        """Steps between two kNN scores, which are about ten in a run."""
        return self.per_epoch * max(1, self.steps // self.per_epoch // 10)

    def watches(self) -> int:
        """How often kNN is scored in the run."""
        return -(-self.steps // self.watch_every)

    def logged(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or self.epoch_ends(step) or step == self.steps

    def watched(self, step: int) -> bool:
        """Whether kNN is scored after this step, which is also done after the last one."""
        return step % self.watch_every == 0 or step == self.steps


def train(
    run: Run,
    config: ResolvedConfig,
    images: ImageSet,
    watched: ImageSet,
    views: Views,
    model: SimCLR,
    teacher: Classifier | None,
    printer: Printer,
    profile: bool,
    world: World,
) -> None:
    """Algorithm 1's loop, from the newest checkpoint to the last step."""
    # ------------------------------------------------------------------------------------------------------------------
    # The model on its device, at the step where this run last stopped.
    device = default_device()
    put_on_device(model, teacher, device, world)
    optimizer = build_optimizer(model, config)
    step, state = load_checkpoint(run.folder / "checkpoint", model, optimizer, printer.say)
    world.check_same({"step": step})  # else they do not see the same folder
    if world.first:
        run.cut_metrics(step)

    # ------------------------------------------------------------------------------------------------------------------
    # On which images, for how long, and what is monitored.
    objective = OBJECTIVES[config.loss]
    schedule = Schedule.of(config, len(images))
    loaded = on_device(images, device)
    watched = loaded if watched is images else on_device(watched, device)
    monitor = Monitor(watched) if Monitor.can_watch(watched) else None
    meter = Meter(state.get("seconds", 0.0))
    clock = Profile(device, enabled=profile)
    lost = LostImages(loaded, run, world)
    losses: list[Tensor] = []  # since the last check; each check waits for the GPU

    with ExitStack() as stack:
        # --------------------------------------------------------------------------------------------------------------
        # What is changed for the loop alone, and put back after it.
        interruption = stack.enter_context(Interruption())
        trained, take_step = ready_to_train(stack, model, teacher, config, device, world)
        printer.start(config, run, views, step, schedule.steps, len(images), monitor is not None)
        stack.enter_context(printer)
        stack.enter_context(clock.attached(trained, optimizer, printer.say))
        stages = [(until, clock.views(smaller)) for until, smaller in stages_of(config, views)]

        for epoch in range(step // schedule.per_epoch, schedule.epochs):
            # ----------------------------------------------------------------------------------------------------------
            # Once an epoch: the images in a new order, read ahead; a resumed run starts within it.
            start = step % schedule.per_epoch
            feed = batches(loaded, config.seed, epoch, config.batch_size, start, config.balanced, device, world)
            for batch in islice(clock.feed(meter.watch(feed)), schedule.steps - step):
                # ------------------------------------------------------------------------------------------------------
                # One step of Algorithm 1. Its views and whatever dropout draws depend on the step alone.
                lost.check(step, len(batch.samples))
                lr = set_lr(optimizer, lr_multiplier(step, schedule.steps, schedule.warmup_steps))
                torch.manual_seed(_seed_of(config.seed, step, world.rank))
                keys = view_keys(config.seed, epoch, batch.samples)
                loss, z = take_step(optimizer, _views_at(step, schedule.steps, stages), batch, keys)
                step += 1
                losses.append(loss)

                # ------------------------------------------------------------------------------------------------------
                # Now and then: look at the losses. A state that is not finite is neither logged nor saved.
                stop = int(max(world.numbers(interruption.requested)))  # all ranks stop after the same step
                logs = schedule.logged(step)
                saves = _checkpoint_is_due(schedule, step, stop, meter.since_checkpoint(), device)
                if logs or saves:
                    _check_finite(losses, model, step, lr, run)
                    losses.clear()

                # ------------------------------------------------------------------------------------------------------
                # Log: every few steps, and at the end of an epoch.
                if logs:
                    line = {"step": step, "epoch": epoch + 1, "loss": loss.item(), "lr": lr, **meter.read()}
                    line["images_per_second"] = world.total(line["images_per_second"])
                    line |= batch_metrics(objective, z, batch.labels, world)
                    if schedule.watched(step):
                        line |= _watch(monitor, loaded, model, config, step, lr, run, world)
                    if world.first:
                        run.log(line)
                    printer.line(line, schedule.steps)
                    meter.restart()
                else:
                    printer.stepped(step, schedule.steps)

                # ------------------------------------------------------------------------------------------------------
                # Checkpoint: all that the next step depends on. Then stop, if a signal asked for it.
                if saves:
                    state = {"seconds": meter.total()}
                    if world.first:
                        save_checkpoint(run.folder / "checkpoint", step, model, optimizer, state, schedule.kept)
                    meter.saved()  # on every rank: whether a checkpoint is due is for all of them to know
                if stop and step < schedule.steps:
                    raise Interrupted(stop, step, schedule.steps, run.folder)


def put_on_device(model: SimCLR, teacher: Classifier | None, device: torch.device, world: World) -> None:
    """Model and teacher where they are computed, channels last; BatchNorm normalizes by the images of all ranks."""
    model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if teacher:
        teacher.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if world.size > 1:
        synchronize_norms(model, world)


def ready_to_train(
    stack: ExitStack,
    model: SimCLR,
    teacher: Classifier | None,
    config: ResolvedConfig,
    device: torch.device,
    world: World,
) -> tuple[SimCLR, TakeStep]:
    """The model as a step calls it, compiled on a GPU, and the step. What it changes is put back when `stack` ends."""
    trained = _settings_of_the_loop(stack, model, teacher, device, config)
    forward: nn.Module = trained
    if world.size > 1:
        stack.enter_context(stride_warnings_off())
        forward = averaged(trained)
    loss_of = OBJECTIVES[config.loss].bind(config.temperature, world)
    algorithm: Callable[..., Any] = simclr_step
    if config.micro_batch is not None:
        algorithm = partial(simclr_step_in_parts, micro_batch=config.micro_batch, world=world)
    recomputed = model.encoder if config.micro_batch or config.checkpoint_activations else None
    precision = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    def take_step(optimizer: Optimizer, views: Any, batch: Batch, keys: Tensor) -> tuple[Tensor, list[Tensor]]:
        labels = batch.labels
        if teacher:
            with precision:
                labels = teacher_logits(teacher, views, batch.images, keys, config.micro_batch, world)
        inputs = (views, loss_of, batch.images, keys, labels)
        return train_step(forward, optimizer, algorithm, inputs, precision, recomputed, config.loss_scale)

    return trained, take_step


def _settings_of_the_loop(
    stack: ExitStack, model: SimCLR, teacher: Classifier | None, device: torch.device, config: ResolvedConfig
) -> SimCLR:
    """Change how layers are computed and memory is kept, until `stack` ends. Returns the model to call."""
    stack.enter_context(cpu_norms(model))
    stack.enter_context(cpu_convolutions(model))
    if teacher:
        stack.enter_context(cpu_convolutions(teacher))
    if config.micro_batch is None and not config.checkpoint_activations:  # else the run wants to stay small
        stack.enter_context(freed_memory_kept())
    if device.type == "cuda":
        stack.enter_context(cudnn_benchmark())
    if not compiles(device) or config.checkpoint_activations:
        return model
    return _compiled(model)


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    algorithm: Callable[..., Any],
    inputs: tuple[Any, ...],
    precision: AbstractContextManager[Any],
    recomputed: nn.Module | None = None,
    loss_scale: float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """One step: Algorithm 1 (`algorithm` of these inputs), its gradient, and the optimizer's update.

    recomputed: an encoder whose activations the backward pass computes again. loss_scale: the gradient is that of the
    loss times this number. Returns the loss and the projections.
    """
    with precision:
        loss, z = model(algorithm, *inputs)
    optimizer.zero_grad()
    with statistics_kept(recomputed) if recomputed else nullcontext():
        (loss * loss_scale).backward()
    optimizer.step()
    return loss.detach(), [projections.detach() for projections in z]


def _compiled(model: SimCLR) -> SimCLR:
    """The same weights, compiled; `model` itself stays plain, for checkpoints and evaluation at other shapes."""
    encoder: Any = torch.compile(model.encoder, dynamic=False)
    head: Any = torch.compile(model.head, dynamic=False)
    return SimCLR(encoder, head)


def _seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of what a step draws besides views, such as dropout: a function of step and rank alone.

    Images have indices from 0 up, so that -1 - rank gives a key that no view has.
    """
    return int(view_keys(seed, step, [-1 - rank])[0])


def _views_at(step: int, steps: int, stages: list[tuple[float, Any]]) -> Any:
    """The views of the first stage that is not over at this step; a stage ends at its share of the steps."""
    for until, views in stages:
        if step < until * steps:
            return views
    raise AssertionError("the last stage ends with the run")


def _checkpoint_is_due(schedule: Schedule, step: int, stop: int, seconds: float, device: torch.device) -> bool:
    """seconds: since the last checkpoint."""
    if stop or seconds > CHECKPOINT_AFTER or step == schedule.steps or step in schedule.kept:
        return True
    return schedule.epoch_ends(step) and (device.type == "cpu" or seconds > SOON)


def _check_finite(losses: list[Tensor], model: nn.Module, step: int, lr: float, run: Run) -> None:
    """Raise `Diverged` if a loss or, after them, a weight or a statistic of BatchNorm is not finite."""
    finite = torch.stack(losses).isfinite().tolist()
    if not all(finite):
        first = step - len(losses) + 1
        raise _diverged("the loss", first + finite.index(False), lr, run)
    if not is_finite(model):
        raise _diverged("a weight", step, lr, run)


def _diverged(what: str, step: int, lr: float, run: Run) -> Diverged:
    return Diverged(
        f"{what} is not finite at step {step} (learning rate {lr:.4g}): try a lower lr, a longer warmup or precision "
        f"fp32; checkpoints from before are in {run.folder / 'checkpoint'}"
    )


def _watch(
    monitor: Monitor | None,
    images: ImageSet,
    model: SimCLR,
    config: ResolvedConfig,
    step: int,
    lr: float,
    run: Run,
    world: World,
) -> dict[str, float]:
    """What the monitor measures, if there is one. Raises `Diverged` where the weights are finite and h is not."""
    try:
        if monitor:
            return monitor(model.encoder, config.precision, world)
        check_represents(model.encoder, images)
    except NotFiniteError:
        raise _diverged("the representation h", step, lr, run) from None
    return {}
