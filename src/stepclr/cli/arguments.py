"""What the commands share: types of arguments, printing, and a counter."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from stepclr.config import SETTINGS, PretrainConfig, RunConfig
from stepclr.data.reading import AS_DECLARED, Reading
from stepclr.errors import StepclrError, one_line
from stepclr.recipes import recipe_config

if TYPE_CHECKING:
    from stepclr.data.images import ImageSet
    from stepclr.tools.report.writing import RunPage

ALL = "(default: all)"
Source = Annotated[str, arg(metavar="SOURCE")]
Damaged = Annotated[Literal["refuse", "skip"], arg(metavar="{refuse,skip}")]

# One SOURCE, or several as a list.
_SOURCES = PrimitiveConstructorSpec(
    nargs="*",
    metavar="SOURCE [SOURCE ...]",
    instance_from_str=lambda words: words[0] if len(words) == 1 else words,
    is_instance=lambda value: value is None or isinstance(value, str | list),
    str_from_instance=lambda value: [value] if isinstance(value, str) else list(value or []),
)
Sources = Annotated[str | list[str], _SOURCES]
OptionalSources = Annotated[str | list[str] | None, _SOURCES]
# These bring their help, because they mean the same in every command.
Images = Positional[
    Annotated[
        Sources,
        arg(
            help="Images: a folder, a zip file, shards, NAME:SPLIT, image files, or several of these.",
            help_behavior_hint="(one or more)",
        ),
    ]
]
EncoderName = Positional[
    Annotated[
        Path,
        arg(
            metavar="RUN|FILE|timm:NAME",
            help="The encoder: a run's folder, an encoder.safetensors, or timm:NAME (pretrained, off the shelf).",
        ),
    ]
]
Names = Annotated[
    str | None,
    arg(metavar="NAME,NAME,...", help="Keep only the labeled images of these classes.", help_behavior_hint=ALL),
]
LabelFiles = Annotated[
    tuple[Path, ...],
    arg(
        metavar="FILE [FILE ...]",
        help="Tables (.csv, .tsv, .parquet) with the columns path and label, whose labels replace those of folders.",
        help_behavior_hint="(default: the source's own labels)",
    ),
]
Read = Annotated[Reading, arg(name="reading")]
Holdout = Annotated[
    float | None,
    arg(
        metavar="SHARE",
        help="Instead of --test, hold out this share of each class of --train, such as 0.2, and score on it.",
        help_behavior_hint="(default: none)",
    ),
]
Limit = Annotated[int | None, arg(metavar="N", help="Keep at most this many images.", help_behavior_hint=ALL)]


def first_rank() -> bool:
    """Whether this is the only process, or the first of those that torchrun started: the one that prints results."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def base_settings(recipe: str | None, resumed: Path | None = None) -> PretrainConfig:
    """The settings that options change: those of a run that is resumed, or of a recipe."""
    stored = RunConfig.read(resumed) if resumed else None
    return stored.settings() if stored else recipe_config(recipe)


def given_settings(config: PretrainConfig, base: PretrainConfig) -> dict[str, Any]:
    """The settings in which `config` differs from `base`: those that the options give."""
    return {name: getattr(config, name) for name in SETTINGS if getattr(config, name) != getattr(base, name)}


def say_loading() -> None:
    """Print on standard error that torch is about to be imported, unless it was."""
    if "torch" not in sys.modules:
        note("loading PyTorch, which takes a few seconds")


def say(text: object) -> None:
    """Print a result to standard output, on the first rank only."""
    if not first_rank():
        return
    if isinstance(text, str):  # else it is a table
        text = "\n".join(map(one_line, text.split("\n")))
    from rich.console import Console  # --help prints without it

    # Names of runs and classes are text, never markup or an emoji such as :train:.
    Console(highlight=False, markup=False, emoji=False, soft_wrap=True).print(text)


def open_source(
    source: str | list[str],
    classes: str | None = None,
    limit: int | None = None,
    damaged: Damaged = "refuse",
    reading: Reading = AS_DECLARED,
    labels: tuple[Path, ...] = (),
    labels_elsewhere: bool = False,
) -> "ImageSet":
    """`open_images` with the arguments of the command line; standard error says what is in the source.

    labels_elsewhere: as for `heading`.
    """
    from stepclr.data.sources import open_images

    images = open_images(
        source, classes=classes or None, limit=limit, damaged=damaged, labels=labels or None, **asdict(reading)
    )
    return _noted(images, labels_elsewhere)


def open_train_test(
    train: str | list[str],
    test: str | list[str] | None,
    labels: tuple[Path, ...],
    reading: Reading,
    holds_out: bool = True,
) -> "tuple[ImageSet, ImageSet | None]":
    """The images to learn from and, if any, to score on; standard error says what is in them."""
    from stepclr.data import sources

    learned, scored = sources.open_train_test(train, test, labels or None, holds_out=holds_out, **asdict(reading))
    return _noted(learned), _noted(scored) if scored else None


def _noted(images: "ImageSet", labels_elsewhere: bool = False) -> "ImageSet":
    """Print on standard error what the images are, and return them."""
    from stepclr.data.labels import heading

    note(*heading(images, labels_elsewhere).split("\n"))
    return images


def say_unread(*opened: "ImageSet | None") -> None:
    """Print on standard error what was found while the images of opened sources were read."""
    for images in filter(None, opened):
        note(*(f"{images.source}: {line}" for line in images.ledger.lines_of_read()))


def note(*lines: str) -> None:
    """Print lines to standard error, on the first rank only."""
    if lines and first_rank():
        print("\n".join(map(one_line, lines)), file=sys.stderr, flush=True)


def image_format(out: Path, option: str = "--out") -> str:
    """Pillow's name of the format that the suffix of --out stands for; StepclrError if it stands for none."""
    from PIL import Image

    extensions = Image.registered_extensions()
    if out.suffix.lower() not in extensions:
        raise StepclrError(f"{option} {out} is not an image format; use a suffix such as .png")
    return extensions[out.suffix.lower()]


def page_of(run: str | os.PathLike[str]) -> "RunPage | None":
    """Write report.html of a run; a failure is printed, and does not fail the command."""
    if not first_rank():
        return None
    from stepclr.tools.report.writing import run_page

    try:
        page = run_page(run)
    except StepclrError as error:
        print(f"the report was not written: {one_line(str(error))}", file=sys.stderr)
        return None
    say(f"report written to {page.path}")
    return page


def say_next(page: "RunPage | None") -> None:
    """Print what a page says is to be done next, and the command."""
    if page:
        say("\n{}\n    {}".format(*page.next))


SILENT, EVERY = 3, 15  # seconds: before the first line of a count, and from one line to the next


class Counter:
    """Prints progress to standard error: what is counted, the time left, and what is done next.

    On a terminal this is one changing line, elsewhere a line at first and then one every 15 seconds. Without a better
    estimate (`left`), the time left is computed as if everything that is counted took equally long.

    Args:
        unit: of what is counted, such as images.
    """

    def __init__(self, unit: str = "") -> None:
        self.unit = unit and f" {unit}"
        self.began = time.monotonic()
        self.printed = self.began + SILENT - EVERY
        self.counted = self.time = self.next = ""
        self.estimated = False

    def __call__(self, done: int, total: int) -> None:
        last = done == total
        self.counted = f"{done:,} of {total:,}{self.unit}"
        if not self.estimated:
            self.time = _left((time.monotonic() - self.began) / max(done, 1) * (total - done))
        if last:
            self.time = ""
        self._print(last=last)
        if last:  # what is counted next begins now
            self.began, self.estimated = time.monotonic(), False

    def left(self, seconds: float) -> None:
        """Show an estimate of the time left, which replaces the one by the count."""
        self.time, self.estimated = _left(seconds), True
        self._print()

    def announce(self, words: str) -> None:
        """Say in words what is done next."""
        if not self.counted:
            self.began = time.monotonic()
        first = not (self.counted or self.time or self.next)
        self.next = one_line(words)
        self._print(first=first)

    def _print(self, last: bool = False, first: bool = False) -> None:
        if not first_rank():
            return
        line = ", ".join(filter(None, [self.counted, self.time]))
        if not last:
            line = ": ".join(filter(None, [line, self.next]))
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width].ljust(width)}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif first or time.monotonic() - self.printed > EVERY:
            self.printed = time.monotonic()
            print(line, file=sys.stderr, flush=True)


def _left(seconds: float) -> str:
    return f"about {int(seconds) // 60}:{int(seconds) % 60:02d} left"


def first_line(command: Callable[..., Any]) -> str:
    """The first line of a command's docstring."""
    return (command.__doc__ or "").split("\n")[0]
