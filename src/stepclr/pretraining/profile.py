"""Where the time of a step goes: data, views, forward, loss, backward, optimizer; hooks measure it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepclr.metrics import in_percent
from stepclr.pretraining.batches import Batch
from stepclr.pretraining.model import SimCLR

PARTS = ("data", "views", "forward", "loss", "backward", "optimizer", "other")
WARM_UP = 3  # steps that are not counted: they load and compile

ViewsOf = Callable[..., Tensor]


class Profile:
    """A clock that always runs for one of PARTS; `enter` changes the part.

    data: waiting for images. views: drawing and rendering. loss: its value and the gradient on z. With micro-batches
    the second pass counts as views and forward too. other: logging, kNN, checkpoints. On a GPU every change of part
    waits for the device, so that its work is counted where it belongs; that alone slows a step a little. Not `enabled`,
    it changes and prints nothing.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.device, self.enabled = device, enabled
        self.steps, self.part = -WARM_UP, "other"
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.since = time.perf_counter()

    def enter(self, part: str) -> None:
        """From here on, time is counted for `part`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self.steps >= 0:
            self.spent[self.part] += now - self.since
        self.part, self.since = part, now

    @contextmanager
    def attached(self, model: SimCLR, optimizer: Optimizer, say: Callable[[str], object]) -> Iterator[None]:
        """Hook into head and optimizer to see where one part ends and the next begins; at the end, `say` the table."""
        if not self.enabled:
            yield
            return
        head = model.head
        hooks = [
            head.register_forward_hook(lambda *_: self.enter("loss")),
            head.register_full_backward_pre_hook(lambda *_: self.enter("backward")),
            optimizer.register_step_pre_hook(lambda *_: self.enter("optimizer")),
            optimizer.register_step_post_hook(lambda *_: self.enter("other")),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            say(self.table())

    def views(self, views: ViewsOf) -> ViewsOf:
        """The same views, timed."""
        if not self.enabled:
            return views

        def timed(*batch: object) -> Tensor:
            self.enter("views")
            rendered = views(*batch)
            self.enter("forward")
            return rendered

        return timed

    def feed(self, feed: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, timed; each is a step."""
        if not self.enabled:
            yield from feed
            return
        while True:
            self.enter("data")
            batch = next(feed, None)
            self.enter("other")
            if batch is None:
                return
            self.steps += 1
            yield batch

    def table(self) -> str:
        """Milliseconds per step and share of each part."""
        total = sum(self.spent.values())
        if self.steps < 1 or not total:
            return f"no profile: the run ended within the first {WARM_UP} steps, which are not counted"
        rows = [f"where the time of {self.steps:,} steps went (the first {WARM_UP} are not counted):"]
        for part, spent in self.spent.items():
            rows.append(f"  {part:10}{1000 * spent / self.steps:10,.1f} ms per step {in_percent(spent / total):>9}")
        return "\n".join(rows)
