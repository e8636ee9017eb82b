"""What the commands share: the kinds of their arguments, what they print, how they count."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from tyro.conf import arg

from stepclr.errors import StepclrError, one_line

if TYPE_CHECKING:
    from stepclr.data.images import ImageSet

Source = Annotated[str, arg(metavar="SOURCE")]
Names = Annotated[str | None, arg(metavar="NAME,NAME,...", help_behavior_hint="(default: all)")]
Damaged = Annotated[Literal["refuse", "skip"], arg(metavar="{refuse,skip}")]
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")]


def first_rank() -> bool:
    """Whether this is the one process of those that torchrun has started that speaks of results."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def say(text: object) -> None:
    """Print a result to standard output, once."""
    if not first_rank():
        return
    shown = "\n".join(map(one_line, text.split("\n"))) if isinstance(text, str) else text  # which is a table
    Console(highlight=False, soft_wrap=True).print(shown, markup=False)


def open_source(source: str, classes: str | None, limit: int | None, damaged: Damaged = "refuse") -> "ImageSet":
    """`open_images` of what the command line was given."""
    from stepclr.data.sources import open_images

    return open_images(source, classes=names(classes), limit=limit, damaged=damaged)


def image_format(out: Path) -> str:
    """Pillow's name of the format that the suffix of --out stands for; StepclrError if it stands for none."""
    from PIL import Image

    extensions = Image.registered_extensions()
    if out.suffix.lower() not in extensions:
        raise StepclrError(f"--out {out} is not an image format; use a suffix such as .png")
    return extensions[out.suffix.lower()]


def page_of(run: str | os.PathLike[str]) -> None:
    """report.html of a run that has come this far whatever becomes of its page."""
    if not first_rank():
        return
    from stepclr.tools.report.writing import write_page

    try:
        say(f"the page that shows its eight steps: {write_page(run)}")
    except StepclrError as error:
        print(f"its page was not written: {one_line(str(error))}", file=sys.stderr)


def names(text: str | None) -> list[str] | None:
    """A list, written with commas; None where nothing was given."""
    return [name.strip() for name in text.split(",")] if text else None


class Counter:
    """Counts on standard error: in one place on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.spoke = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if not first_rank():
            return
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif time.monotonic() - self.spoke > 15:
            self.spoke = time.monotonic()
            print(f"{done:,} of {total:,}", file=sys.stderr, flush=True)


def first_line(command: Callable[..., Any]) -> str:
    """What a command or a recipe says of itself in one line."""
    return (command.__doc__ or "").split("\n")[0]
