"""The one error for what a user can correct: a line that says what is wrong, where, and the nearest right thing."""

import difflib
import importlib
import json
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType

# Modules whose errors say nothing to people who did not write the parser that raises them.
PARSERS = {"builtins", "struct", "zlib", "_lzma", "_pickle", "pickle", "tokenize", "pyarrow.lib"}


class StepclrError(ValueError):
    """Input that cannot be used. Its message is one line; the command line prints it and exits with 2."""


def counted(n: float, one: str, more: str = "") -> str:
    """A number with its noun: "1 step", "2,000 steps", "0.5 epochs"."""
    number = f"{n:,}" if isinstance(n, int) else f"{n:g}"
    return f"{number} {one}" if n == 1 else f"{number} {more or one + 's'}"


def one_line(text: str) -> str:
    """`text` with what would end the line, or move in the terminal, written as an escape: a file's name may hold it."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def lines_as_text(text: str) -> str:
    """A text of several lines, each as `one_line` prints it."""
    return "\n".join(map(one_line, text.split("\n")))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def fault_of(error: BaseException, explained: bool = False) -> str:
    """What is wrong with a file, from the error of whatever could not read it, for people who did not write its parser.

    Messages of the system, of this package and of the JSON parser, which names a place, are kept. Those of other
    libraries follow a general sentence. Those of Python's own parsers, such as "unpack requires a buffer of 4 bytes",
    are left out. explained: whether an OSError has a message for people, as Pillow's have.
    """
    if isinstance(error, StepclrError | json.JSONDecodeError):
        return first_line(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    fault = "the file is damaged, cut off or of another kind"
    if type(error).__module__ in PARSERS and not (explained and type(error) is OSError):
        return fault
    return f"{fault}: {first_line(error).split('. ')[0]}"


def installed(package: str, extra: str, by: str) -> ModuleType:
    """The module `package`, of the optional dependencies `extra`; StepclrError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.split(".")[0]
        raise StepclrError(f"{by} needs the package {name}: pip install 'stepclr[{extra}]'") from None


def check_suffix(out: Path, suffixes: Sequence[str], alternative: str = "") -> None:
    """Raise StepclrError unless the suffix of `out`, which picks its format, is one of `suffixes`."""
    if out.suffix not in suffixes:
        raise StepclrError(f"out must end in {' or '.join(suffixes)}{alternative}, not {str(out)!r}")


def check_number(
    name: str, value: int | float | None, least: int | float = -math.inf, above: int | float = -math.inf
) -> None:
    """Raise StepclrError unless the argument `name` is None or a finite number, at least `least` and above `above`."""
    if value is None:
        return
    _check_is_number(name, value)
    if not math.isfinite(value):
        raise StepclrError(f"{name} must be a finite number, not {value}")
    if value < least:
        raise StepclrError(f"{name} must be at least {least}, not {value}")
    if value <= above:
        raise StepclrError(f"{name} must be above {above}, not {value}")


def check_whole(name: str, value: int | float | None, least: int) -> None:
    """Raise StepclrError unless the argument `name` is None or a whole number of at least `least`."""
    if value is not None and not isinstance(value, Integral):
        raise StepclrError(f"{name} must be a whole number, not {value!r}")
    check_number(name, value, least)


def check_range(name: str, value: float | int | None, low: float | int, high: float | int) -> None:
    """Raise StepclrError unless the argument `name` is None or low <= value <= high."""
    if value is None:
        return
    _check_is_number(name, value)
    if not low <= value <= high:
        raise StepclrError(f"{name} must lie between {low} and {high}, not {value}")


def _check_is_number(name: str, value: object) -> None:
    if not isinstance(value, Real):
        raise StepclrError(f"{name} must be a number, not {value!r}")


def check_used(name: str, given: bool, used: bool, what: str) -> None:
    """Raise StepclrError if the argument `name` is given where it has no effect; `what` it is for instead."""
    if given and not used:
        raise StepclrError(f"{name} has no effect here: it is for {what}")


def choose(what: str, given: str, choices: Iterable[str]) -> str:
    """`given` if it is one of `choices`; else raise `StepclrError` that names the nearest choice and them all."""
    known = list(choices)
    if given in known:
        return given
    shown = ", ".join(known[:20]) + (f", ... ({len(known)} in all)" if len(known) > 20 else "")
    raise StepclrError(f"unknown {what} {given!r}.{nearest(given, known)} There are: {shown}")


def nearest(given: str, choices: Iterable[str]) -> str:
    """ " Did you mean X?" with the choice that is most like `given`; "" where none is."""
    near = difflib.get_close_matches(given, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
