"""The pace of a run on this machine, by a short trial: with `minutes`, it decides how many epochs the run has."""

import tempfile
import time
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from stepclr.config import Number, PretrainConfig, ResolvedConfig
from stepclr.data.images import ImageSet
from stepclr.device import default_device
from stepclr.distributed import World
from stepclr.errors import StepclrError
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.classifier import Classifier
from stepclr.pretraining.batches import endless, steps_per_epoch
from stepclr.pretraining.checkpoint import save_checkpoint
from stepclr.pretraining.gpu_cache import on_device
from stepclr.pretraining.loop import LOG_EVERY, SOON, Schedule, TakeStep, put_on_device, ready_to_train
from stepclr.pretraining.model import SimCLR
from stepclr.pretraining.monitor import Monitor, batch_metrics
from stepclr.pretraining.optim import build_optimizer, set_lr
from stepclr.pretraining.resolve import stages_of, with_epochs
from stepclr.views.keys import view_keys
from stepclr.views.views import Views

SHARE = 0.03  # of the time may be spent on the trial's steps; two steps of each size of views are taken in any case
WARM_UP, TIMED = 4, 200  # steps of each size, at most; the warm-up covers what is compiled


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a run take.

    step: the average over the run, whose views may grow. checkpoint: to write one. watch: to score kNN once.
    """

    step: float
    checkpoint: float
    watch: float

    def steps_in(self, seconds: float, config: ResolvedConfig, n: int) -> int:
        """How many steps fit, with their checkpoints and kNN scores, and the encoder's file at the end."""
        per_epoch = steps_per_epoch(n, config.batch_size)
        checkpoints = 1 / per_epoch  # in a step, on average
        if default_device().type != "cpu":
            checkpoints = min(checkpoints, self.step / SOON)
        each = self.step + checkpoints * self.checkpoint
        left = seconds - 2 * self.checkpoint
        steps = max(0, int(left / each))  # what is over already is not watched
        watches = Schedule(per_epoch, steps, 0, ()).watches()
        return int((left - watches * self.watch) / each)


def fitted(
    decided: ResolvedConfig,
    config: PretrainConfig,
    minutes: Number,
    since: float,
    images: ImageSet,
    watched: ImageSet,
    views: Views,
    model: SimCLR,
    teacher: Classifier | None,
    world: World,
) -> ResolvedConfig:
    """`decided` with as many epochs as fit into its `minutes`, counted from `since` on (time.monotonic).

    All ranks take part in the trial, and rank 0 decides. Raises StepclrError where not one step fits.
    """
    seconds = 60.0 * minutes
    pace = measured(decided, seconds, images, watched, views, deepcopy(model), teacher, world)
    gone = time.monotonic() - since
    steps = int(world.numbers(pace.steps_in(seconds - gone, decided, len(images)))[0])
    if steps < 1:
        raise StepclrError(
            f"minutes={minutes:g} is too short: {gone:.1f} s were over before the first step, which takes "
            f"{pace.step:.2g} s, and the kNN score takes {pace.watch:.2g} s"
        )
    epochs = float(f"{steps / steps_per_epoch(len(images), decided.batch_size):.4g}")
    return with_epochs(decided, config, epochs)


def measured(
    config: ResolvedConfig,
    seconds: float,
    images: ImageSet,
    watched: ImageSet,
    views: Views,
    trial: SimCLR,
    teacher: Classifier | None,
    world: World,
) -> Pace:
    """The pace of a run of this length, measured by steps of the model `trial`, which is not to be used afterwards.

    The steps are those of the loop at a learning rate of 0, so that none diverges.
    """
    device = default_device()
    put_on_device(trial, teacher, device, world)
    optimizer = build_optimizer(trial, config)
    set_lr(optimizer, 0.0)
    with ExitStack() as stack:
        _, take_step = ready_to_train(stack, trial, teacher, config, device, world)
        steps = _Steps(config, take_step, optimizer, on_device(images, device), device, world)
        step_seconds, begun = 0.0, 0.0
        for until, smaller in stages_of(config, views):
            share, begun = until - begun, until
            steps.take(smaller, WARM_UP, share * SHARE / 3 * seconds)
            step_seconds += share * steps.take(smaller, TIMED, share * SHARE * seconds)

    started = time.perf_counter()
    if world.first:
        with tempfile.TemporaryDirectory(prefix="stepclr-pace-") as folder:
            save_checkpoint(Path(folder), 0, trial, optimizer, {}, ())
    checkpoint_seconds = time.perf_counter() - started

    watch_seconds = 0.0
    if Monitor.can_watch(watched):
        monitor = Monitor(on_device(watched, device))
        started = time.perf_counter()
        monitor(trial.encoder, config.precision, world)
        watch_seconds = time.perf_counter() - started
    return Pace(step_seconds, checkpoint_seconds, watch_seconds)


class _Steps:
    """Takes steps on one batch after another, epoch after epoch."""

    def __init__(
        self,
        config: ResolvedConfig,
        take_step: TakeStep,
        optimizer: Optimizer,
        images: ImageSet,
        device: torch.device,
        world: World,
    ) -> None:
        self.config, self.take_step, self.optimizer, self.world = config, take_step, optimizer, world
        self.objective = OBJECTIVES[config.loss]
        # The GPU is not waited for after each step, as in the loop.
        self.waits_every = 1 if device.type == "cpu" else LOG_EVERY
        self.feed = endless(images, config.seed, config.batch_size, config.balanced, device, world)

    def take(self, views: Any, most: int, seconds: float) -> float:
        """Seconds of a step: the mean of as many steps as these seconds allow, at least one and at most `most`."""
        started = time.perf_counter()
        for taken in range(1, most + 1):
            epoch, batch = next(self.feed)
            keys = view_keys(self.config.seed, epoch, batch.samples)
            loss, z = self.take_step(self.optimizer, views, batch, keys)
            if taken % LOG_EVERY == 0 or taken == most:  # in the warm-up too: what they need is loaded once
                batch_metrics(self.objective, z, batch.labels, self.world)
            if taken % self.waits_every == 0 or taken == most:
                loss.item()
                spent = time.perf_counter() - started
                if self.world.numbers(spent)[0] >= seconds:
                    break
        return spent / taken
