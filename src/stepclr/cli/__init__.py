"""The command line: one function per command, in the modules of this folder."""

import errno
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import tyro
from tyro.conf import OmitArgPrefixes

from stepclr.cli.arguments import base_settings, first_line, note_typed
from stepclr.cli.index import find, label, search
from stepclr.cli.looking import demo, doctor, report, steps, views
from stepclr.cli.printing import end_line, say_loading
from stepclr.cli.scoring import compare, embed, evaluate, export, predict
from stepclr.cli.training import distill, finetune, pack, pretrain
from stepclr.config import PretrainConfig
from stepclr.errors import StepclrError, choose, one_line
from stepclr.recipes import RECIPES, length_as_asked

SOURCES = """A SOURCE is a folder or zip file of images (class folders or --labels give labels), shards (a folder
written by 'stepclr pack', x.tar, DIR/{0000..0127}.tar, or an fsspec URL of these), or NAME:SPLIT; where
one is taken, several are:
  sample:{unlabeled,train,test}     bundled images from Fashion-MNIST
  stl10:{train,test,unlabeled,train+unlabeled}   cifar10:, cifar100:, fashion-mnist:{train,test}"""

Command = Callable[..., None]

GROUPS: dict[str, dict[str, Command]] = {
    "Inspect data and views": {"doctor": doctor, "views": views, "steps": steps},
    "Train": {"pretrain": pretrain, "finetune": finetune, "distill": distill},
    "Evaluate and predict": {"evaluate": evaluate, "compare": compare, "predict": predict},
    "Use the encoder": {"embed": embed, "search": search, "find": find, "label": label, "export": export},
    "Prepare data": {"pack": pack},
    "Show": {"demo": demo, "report": report},
}
COMMANDS = {name: command for commands in GROUPS.values() for name, command in commands.items()}

MAY_BE_EMPTY = ("--probe", "--baselines", "--classes")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command; exit with 0, 1 (the run failed), 2 (bad input) or 128 + the signal that stopped it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # torch, imported later, then uses large pages, which saves a tenth of a step, and its threads sleep while they
    # wait: beside a busy process, a loop took several times as long (benchmarks/results/training.md; on Linux alone).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux":
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if isinstance(sys.stdout, io.TextIOWrapper):  # where it has no ± or no umlauts, an escape stands for them
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            _run(arguments)
        finally:
            if sys.stdout:  # now, and not when the interpreter ends, where nobody can catch what it raises
                sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # SIGPIPE
    except StepclrError as error:
        _fail(as_options(str(error)), 2)
    except KeyboardInterrupt as stop:
        _fail(as_options(str(stop)) or "interrupted", 128 + getattr(stop, "signal", 2))
    except (RuntimeError, OSError, MemoryError) as error:
        from stepclr.device import lacks_memory
        from stepclr.distributed import lost_the_others
        from stepclr.pretraining.loop import Diverged
        from stepclr.tools.export.convert import ExportMismatchError

        if lost_the_others(error):
            _fail("another rank exited; see the error message of that rank", 1)
        if lacks_memory(error):
            _fail(f"there is not enough memory: {error}".removesuffix(": "), 1)
        if not isinstance(error, Diverged | ExportMismatchError | OSError):
            raise
        _fail(_of_the_system(error) if isinstance(error, OSError) else as_options(str(error)), 1)
    sys.exit(0)


def usage() -> str:
    """`stepclr --help`."""
    lines = [
        "usage: stepclr COMMAND [OPTIONS]",
        "",
        "SimCLR, step by step. 'stepclr COMMAND --help' lists the options of a command.",
    ]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:10}{first_line(command)}" for name, command in commands.items()]
    lines += ["", SOURCES, "", "Recipes (pretrain --recipe NAME):"]
    lines += [f"  {name:19}{recipe.line}" for name, recipe in RECIPES.items()]
    return "\n".join(lines)


def as_options(message: str) -> str:
    """A library error with its arguments spelled as options: batch_size as --batch-size, resume=True as --resume.

    A switch that is set to False has --no- before its name.
    A name of one word is left as it is, because it may be an ordinary word: `size must be ...` reads well. Only
    `another out` at the end is certainly the option.
    """
    names = {name for command in COMMANDS.values() for name in inspect.signature(command).parameters}
    names |= {field.name for field in fields(PretrainConfig)}

    def option(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in names or not (value or "_" in name):
            return match[0]
        words = name.replace("_", "-")
        if value == "=False":
            return f"--no-{words}"
        flag = f"--{words}"
        return flag if value in (None, "=True") else f"{flag} " + value.strip("='")

    message = re.sub(r"\banother out$", "another --out", message)
    # Not inside of a path, a quoted value or another name.
    return re.sub(r"(?<![\w./'\"-])([a-z]\w*)(='[\w.-]+'|=[\w.-]*\w)?(?![\w/'\"(-])", option, message)


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        from stepclr import __version__

        print(f"stepclr {__version__}")
        return
    _check_words(words)
    name, *arguments = words
    choose("command", name, COMMANDS)
    command = _announced(COMMANDS[name])
    # The defaults of the options are those of the recipe or, with --resume, those of the run.
    if name in ("pretrain", "doctor"):
        run = _peek(arguments, "--out") if "--resume" in arguments else None
        base = base_settings(_peek(arguments, "--recipe"), Path(run) if run else None)
        base = length_as_asked(base, [length for length in ("epochs", "minutes") if _peek(arguments, f"--{length}")])
        command = partial(command, config=base)
        note_typed(arguments)
    tyro.cli(command, args=arguments, prog=f"stepclr {name}", config=(OmitArgPrefixes,))


def _check_words(arguments: Sequence[str]) -> None:
    """Raise StepclrError for an empty word, such as "$PHOTOS" where that is not set: it is not the current folder."""
    for before, word in pairwise(arguments):
        if not word and before not in MAY_BE_EMPTY:
            raise StepclrError(f"the word after {before} is empty; give . for the current folder")


def _announced(command: Command) -> Command:
    """The command, which first prints a line: each one imports torch before it can print anything else."""

    @wraps(command)
    def announced(*arguments: object, **options: object) -> None:
        say_loading()
        from stepclr.cli.cores import keep_to_share, noticing_others  # --help prints without it

        keep_to_share()
        with noticing_others():
            command(*arguments, **options)

    return announced


def _peek(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option that decides the defaults of the others."""
    for position, word in enumerate(arguments):
        if word == option and position + 1 < len(arguments):
            return arguments[position + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _of_the_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    hint = "; free some disk space and retry (use --resume to continue a run)" if error.errno in FULL else ""
    return f"{where}{error.strerror or error}{hint}"


def _fail(message: str, code: int) -> NoReturn:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        message = f"rank {os.environ.get('RANK', '?')}: {message}"
    end_line()
    print(f"stepclr: {one_line(message)}", file=sys.stderr)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(RuntimeError(message))  # torchrun repeats it at the end
    sys.exit(code)
