"""How a run reports its progress: its speed, what it prints, and TensorBoard's copy of metrics.jsonl."""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from stepclr.config import ResolvedConfig
from stepclr.device import default_device
from stepclr.errors import StepclrError, counted, lines_as_text
from stepclr.loss.objectives import OBJECTIVES
from stepclr.metrics import in_percent, whole_percent
from stepclr.pretraining.batches import Batch
from stepclr.pretraining.resolve import work_of
from stepclr.pretraining.run import Fields, Run
from stepclr.views.views import Views

EVERY = 15  # seconds between two lines where there is no terminal
FEW = 500  # images that kNN is the score of: of fewer, it has a standard error of 2 points or more


class Meter:
    """Counts images and seconds between two readings; `seconds` are those of the whole run, also before a resume."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()
        self._saved = self._clock

    def restart(self) -> None:
        """Start a new count: what lies between two counts (logging, kNN) is not training."""
        self._clock, self._waited, self._seen = time.perf_counter(), 0.0, 0

    def watch(self, feed: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time spent waiting for them and the number of images counted."""
        while True:
            asked = time.perf_counter()
            batch = next(feed, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            self._seen += len(batch.samples)
            yield batch

    def read(self) -> dict[str, float]:
        """Images per second, share of the time spent waiting for data, and training seconds of the run so far."""
        spent = time.perf_counter() - self._clock
        self.seconds += spent
        return {"images_per_second": self._seen / spent, "waiting": self._waited / spent, "seconds": self.seconds}

    def total(self) -> float:
        """Training seconds of the run up to now, including those since the last reading."""
        return self.seconds + time.perf_counter() - self._clock

    def saved(self) -> None:
        """Note that a checkpoint has been written: this is time of the run, but not of the loop."""
        self.seconds = self.total()
        self.restart()
        self._saved = self._clock

    def since_checkpoint(self) -> float:
        """Seconds since the last checkpoint."""
        return time.perf_counter() - self._saved


class Printer:
    """Prints settings, images per second, time left and scores to standard error; silent if not `enabled`.

    On a terminal a progress bar, elsewhere a line every few seconds.

    tensorboard: write each line of metrics to TensorBoard's event files too.
    """

    def __init__(self, enabled: bool, tensorboard: bool = False) -> None:
        if tensorboard:
            summary_writer()  # a missing package is reported now, not after the first step
        self.tensorboard = tensorboard
        self.events: Events | None = None
        # A source such as sample:train: is text, never an emoji.
        self.console = Console(file=sys.stderr, quiet=not enabled, highlight=False, emoji=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.work: Callable[[int], float] = float  # up to a step, in full steps
        self.spoke = time.monotonic()
        self.silence = EVERY / 5  # seconds; shorter before the first line
        self.first, self.clocked = 1, 0.0
        self.knn = ""

    def say(self, text: str) -> None:
        """Print a text without markup; names in it may have any characters."""
        self.console.print(lines_as_text(text), markup=False)

    def decoded(self, done: int, total: int) -> None:
        """Print how many images are decoded, if it takes more than a few seconds."""
        if time.monotonic() - self.spoke > EVERY / 5:
            self.spoke = time.monotonic()
            self.console.print(f"decoded {done:,} of {total:,} images")

    def start(
        self, config: ResolvedConfig, run: Run, views: Views, step: int, steps: int, images: int, watched: bool
    ) -> None:
        """Print what is about to happen, including every setting as decided."""
        lines = [
            f"pretraining {config.encoder} on {counted(images, 'image')}: {counted(config.epochs, 'epoch')}, "
            f"{counted(steps, 'step')} of {counted(config.batch_size, 'image')}, into {run.folder}"
        ]
        described = f"  {config.views} view{'s' * (config.views != 1)} of an image, {views.describe()}"
        if views.renderer == "torch" and default_device().type == "cpu":
            described += ", rendered by torch"
        if config.progressive:
            described += ", at half and three quarters of the size first"
        if config.test_scale != 1:
            described += f"; whole images are represented at {config.test_size} px"
        scale = "" if config.loss_scale == 1 else f" (times {config.loss_scale:.4g} in the gradient)"
        lines += [
            described,
            f"  loss {config.loss}{scale}, temperature {config.temperature:g}; {config.optimizer}, "
            f"lr {config.lr:g} at batch 256 ({config.lr_scaling}), weight decay {config.weight_decay:g}, "
            f"warm-up {config.warmup:g} epoch{'s' * (config.warmup != 1)}",
            f"  precision {config.precision}, channels_last; seed {config.seed}",
        ]
        if not watched:
            lines[-1] += "; no labels for the kNN score; set monitor to a labeled source"
        elif OBJECTIVES[config.loss].needs_labels and not config.monitor:
            lines[-1] += "; kNN is of labels that training learns from; set monitor to other labeled images"
        if step:
            lines.append(f"  resuming after step {step:,}")
        self.say("\n".join(lines))
        self.spoke = time.monotonic()
        self.first, self.work = step + 1, partial(work_of, config, steps=steps)
        self.events = Events(run) if self.tensorboard else None
        if self.console.is_terminal and not self.console.quiet:
            done, text = TextColumn("{task.fields[done]}"), TextColumn("{task.description}")
            self.bar = Progress(BarColumn(bar_width=16), done, text, TimeRemainingColumn(), console=self.console)
            task = self.bar.add_task("", total=self.work(steps), done=f"{step}/{steps}")
            self.bar.update(task, completed=self.work(step))
            self.bar.start()

    def stepped(self, step: int, steps: int) -> None:
        """Show that a step without metrics is done: where steps take seconds, those with metrics are minutes apart."""
        self._clock(step)
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=self.work(step), done=f"{step}/{steps}")
        elif time.monotonic() - self.spoke > 2 * self.silence:
            self._print(step, steps, "")

    def line(self, line: Fields, steps: int) -> None:
        """Show one line of metrics."""
        self._clock(line["step"])
        if self.events:
            self.events.add(line)
        if "knn" in line:
            self.knn = f", kNN {in_percent(line['knn'])}"
            if line["knn_images"] < FEW:
                self.knn += f" of {line['knn_images']}"
        speed = f"{self.knn}, {line['images_per_second']:,.0f} images/s"
        if self.bar:
            # Next to the bar, within 80 columns.
            short = f"loss {line['loss']:.2f}{speed}, waiting {whole_percent(line['waiting'])}"
            self.bar.update(self.bar.task_ids[0], description=short)
            self.stepped(line["step"], steps)
        elif time.monotonic() - self.spoke > self.silence or line["step"] == steps:
            loss = f" epoch {line['epoch']}: loss {line['loss']:.3f}"
            self._print(line["step"], steps, f"{loss}{_top1(line)}{speed}, waiting {whole_percent(line['waiting'])}")

    def _clock(self, step: int) -> None:
        """Start the clock of the pace after the first step, which also loads and compiles and may take much longer."""
        if step == self.first:
            self.clocked = time.monotonic()

    def _print(self, step: int, steps: int, metrics: str) -> None:
        """A line that says how many steps are done and, once there is a pace, how long the others take."""
        self.spoke, self.silence = time.monotonic(), EVERY
        words = f"{step:,}/{steps:,}{metrics}"
        if step > self.first or step == steps:
            done, ahead = self.work(step) - self.work(self.first), self.work(steps) - self.work(step)
            left = int((self.spoke - self.clocked) / (done or 1) * ahead)
            words += f", {left // 60}:{left % 60:02d} left"
        self.console.print(words)

    def __enter__(self) -> "Printer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        if self.events:
            self.events.close()


def _top1(line: Fields) -> str:
    for name, words in (("contrastive_top1", "contrastive top-1"), ("top1", "top-1")):
        if name in line:
            return f", {words} {whole_percent(line[name])}"
    return ""


class Events:
    """Writes the lines that metrics.jsonl contains at the start, then each new line; older event files are replaced."""

    def __init__(self, run: Run) -> None:
        folder = run.folder / "tensorboard"
        for path in folder.glob("events.out.tfevents.*"):  # they may describe steps that a resumed run repeats
            path.unlink()
        self.writer = summary_writer()(str(folder))
        for line in run.metrics:
            self.add(line)

    def add(self, line: Fields) -> None:
        """One line of metrics.jsonl."""
        for name, value in line.items():
            if name != "step":
                self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def summary_writer() -> Any:
    """TensorBoard's class; raises StepclrError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise StepclrError("tensorboard=True needs its package: pip install 'stepclr[tensorboard]'") from None
    return SummaryWriter
