"""What a run prints while it trains: a progress bar on a terminal, elsewhere a line every few seconds."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from stepclr.config import ResolvedConfig
from stepclr.errors import one_line
from stepclr.pretraining.run import Fields, Run
from stepclr.pretraining.tensorboard import Events, summary_writer
from stepclr.views.views import Views

EVERY = 15  # seconds between two lines where there is no terminal


class Progress:
    """Prints settings, images per second, time left and scores to standard error; silent if not `enabled`.

    tensorboard: write each line of metrics to TensorBoard's event files too.
    """

    def __init__(self, enabled: bool, tensorboard: bool = False) -> None:
        if tensorboard:
            summary_writer()  # a missing package is reported now, not after the first step
        self.tensorboard = tensorboard
        self.events: Events | None = None
        self.console = Console(file=sys.stderr, quiet=not enabled, highlight=False, soft_wrap=True)
        self.bar: Bar | None = None
        self.spoke = time.monotonic()
        self.begun = (0.0, 0)
        self.knn = ""

    def skipped(self, unreadable: list[tuple[str, str]]) -> None:
        """Report images that cannot be read, with the first as an example."""
        if unreadable:
            path, reason = unreadable[0]
            self.say(f"skipped {len(unreadable)} images that cannot be read, for example {one_line(path)}: {reason}")

    def say(self, text: str) -> None:
        """Print a text without markup."""
        self.console.print(text, markup=False)

    def decoded(self, done: int, total: int) -> None:
        """Print how many images are decoded, if it takes more than a few seconds."""
        if time.monotonic() - self.spoke > EVERY / 5:
            self.spoke = time.monotonic()
            self.console.print(f"decoded {done:,} of {total:,} images")

    def start(
        self, config: ResolvedConfig, run: Run, views: Views, step: int, steps: int, images: int, watched: bool
    ) -> None:
        """Print what is about to happen, including every setting as decided."""
        self.console.print(
            f"pretraining {config.encoder} on {images:,} images: {config.epochs} epochs, {steps:,} steps of "
            f"{min(config.batch_size, images)} images, into {run.folder}\n"
            f"  {config.views} views of an image, {views.describe()}"
            + (", at half and three quarters of the size first" if config.progressive else "")
            + f"\n  loss {config.loss}, temperature {config.temperature:g}; {config.optimizer}, lr {config.lr:g} at "
            f"batch 256 ({config.lr_scaling}), weight decay {config.weight_decay:g}, warm-up {config.warmup:g} "
            f"epoch{'' if config.warmup == 1 else 's'}\n"
            f"  precision {config.precision}, channels_last; seed {config.seed}"
            + ("" if watched else "; no labels for the kNN score; set monitor to a labeled source")
            + (f"\n  resuming after step {step:,}" if step else ""),
            markup=False,
        )
        self.begun = (time.monotonic(), step)
        self.events = Events(run) if self.tensorboard else None
        if self.console.is_terminal and not self.console.quiet:
            text = TextColumn("{task.description}")
            columns = (BarColumn(bar_width=16), MofNCompleteColumn(), text, TimeRemainingColumn())
            self.bar = Bar(*columns, console=self.console)
            self.bar.add_task("", total=steps, completed=step)
            self.bar.start()

    def line(self, line: Fields, steps: int) -> None:
        """Show one line of metrics."""
        if self.events:
            self.events.add(line)
        if "knn" in line:
            self.knn = f", kNN {100 * line['knn']:.1f} %"
        speed = f"{self.knn}, {line['images_per_second']:,.0f} images/s"
        if self.bar:
            # Next to the bar, within 80 columns.
            short = f"loss {line['loss']:.2f}{speed}, waiting {line['waiting']:.0%}"
            self.bar.update(self.bar.task_ids[0], completed=line["step"], description=short)
        elif time.monotonic() - self.spoke > EVERY or line["step"] == steps:
            self.spoke = time.monotonic()
            begun, first = self.begun
            left = (self.spoke - begun) / (line["step"] - first) * (steps - line["step"])
            self.console.print(
                f"{line['step']:,}/{steps:,} epoch {line['epoch']}: loss {line['loss']:.3f}"
                f"{_top1(line)}{speed}, waiting {line['waiting']:.0%}, {_minutes(left)} left"
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        if self.events:
            self.events.close()


def _top1(line: Fields) -> str:
    for name, words in (("contrastive_top1", "contrastive top-1"), ("top1", "top-1")):
        if name in line:
            return f", {words} {100 * line[name]:.0f} %"
    return ""


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
