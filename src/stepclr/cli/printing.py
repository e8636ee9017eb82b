"""What the commands print: results to standard output; to standard error notes, and how far they are."""

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from stepclr.errors import StepclrError, lines_as_text, one_line

if TYPE_CHECKING:
    from stepclr.data.images import ImageSet
    from stepclr.tools.report.writing import RunPage

SILENT, EVERY = 3, 15  # seconds: before the first line of a count, and from one line to the next


def first_rank() -> bool:
    """Whether this is the only process, or the first of those that torchrun started: the one that prints results."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def say_loading() -> None:
    """Print on standard error that torch is about to be imported, unless it was."""
    if "torch" not in sys.modules:
        note("loading PyTorch, which takes a few seconds")


def say(text: object) -> None:
    """Print a result to standard output, on the first rank only."""
    if not first_rank():
        return
    end_line()
    if isinstance(text, str):  # else it is a table
        print(lines_as_text(text), flush=True)
        return
    from rich.console import Console  # --help prints without it
    from rich.text import Text

    class PlainConsole(Console):
        """Names of runs and classes are text: never markup, an emoji such as :train:, or what moves in a terminal."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(one_line(text), **options)

    PlainConsole(highlight=False, markup=False, emoji=False, soft_wrap=True).print(text)


def say_unread(*opened: "ImageSet | None") -> None:
    """Print on standard error what was found while the images of opened sources were read."""
    for images in filter(None, opened):
        note(*(f"{images.source}: {line}" for line in images.ledger.lines_of_read()))


def note(*lines: str) -> None:
    """Print lines to standard error, on the first rank only."""
    if lines and first_rank():
        end_line()
        print("\n".join(map(one_line, lines)), file=sys.stderr, flush=True)


def page_of(run: str | os.PathLike[str]) -> "RunPage | None":
    """Write report.html of a run; a failure is printed, and does not fail the command."""
    if not first_rank():
        return None
    from stepclr.tools.report.writing import run_page

    try:
        page = run_page(run)
    except StepclrError as error:
        note(f"the report was not written: {one_line(str(error))}")
        return None
    say(f"report written to {page.path}")
    return page


def say_next(page: "RunPage | None") -> None:
    """Print what a page says is to be done next, and the command."""
    if page:
        say("\n{}\n    {}".format(*page.next))


class Counter:
    """Prints progress to standard error: what is counted, the time left, and what is done next.

    On a terminal this is one changing line, elsewhere a line at first and then one every 15 seconds. Without a better
    estimate (`left`), the time left is computed as if everything that is counted took equally long.

    Args:
        unit: of what is counted, such as images.
    """

    changing = False
    """Whether the terminal shows a line of any counter that is going to change."""

    def __init__(self, unit: str = "") -> None:
        self.unit = unit and f" {unit}"
        self.began = time.monotonic()
        self.printed = self.began + SILENT - EVERY
        self.counted = self.time = self.next = ""
        self.estimated = self.ended = False

    def __call__(self, done: int, total: int) -> None:
        self.ended = last = done == total
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
        if not seconds and self.ended:
            return
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
            Counter.changing = not last
        elif first or time.monotonic() - self.printed > EVERY:
            self.printed = time.monotonic()
            print(line, file=sys.stderr, flush=True)


def end_line() -> None:
    """End the line of a counter that the terminal shows, so that what is printed next has a line of its own."""
    if Counter.changing:
        print(file=sys.stderr, flush=True)
        Counter.changing = False


def _left(seconds: float) -> str:
    return f"about {int(seconds) // 60}:{int(seconds) % 60:02d} left"
