"""The two pages of reference that the site generates: every command with its help, and every public Python name."""

import ast
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from mkdocs.exceptions import PluginError

WIDTH = 88  # of the commands' help, characters
ROOMS = {
    "data": "Images",
    "views": "Views",
    "model": "Encoder, head and classifier",
    "loss": "Losses",
    "pretraining": "Pretraining",
    "evaluation": "Evaluation and classifiers",
    "tools": "Use an encoder",
    "config": "Settings",
    "errors": "Errors",
}


def commands_page() -> str:
    """The help of each command, at a fixed width and without colors."""
    from stepclr.cli import COMMANDS, main, usage
    from stepclr.cli.arguments import first_line

    def help_of(name: str) -> str:
        shown = io.StringIO()
        with redirect_stdout(shown), suppress(SystemExit):
            main([name, "--help"])
        return "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())

    parts = ["# Commands", "The help of each command, as `--help` prints it.", f"```text\n{usage()}\n```"]
    with _plain_terminal():
        for name, command in COMMANDS.items():
            parts += [f"## stepclr {name}", first_line(command), f"```text\n{help_of(name)}\n```"]
    return "\n\n".join(parts) + "\n"


def python_page(repository: Path) -> str:
    """The signature and the docstring of each public name, in the order of the eight steps."""
    import stepclr

    parts = [
        "# Python",
        "The public names of `stepclr`, in the order of the eight steps. [Use the parts in your own loop](own-loop.md) "
        "shows how the parts fit together.",
    ]
    for room, title in ROOMS.items():
        parts.append(f"## {title}")
        for name in stepclr.__all__:
            module = getattr(stepclr, name).__module__.removeprefix("stepclr.")
            if module.split(".")[0] == room:
                parts += _entry(name, f"src/stepclr/{module.replace('.', '/')}.py", repository)
    return "\n\n".join(parts) + "\n"


def _entry(name: str, path: str, repository: Path) -> list[str]:
    """The parts of the page about the function or class of this name."""
    source = (repository / path).read_text()
    node = next((one for one in ast.parse(source).body if getattr(one, "name", None) == name), None)
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        raise PluginError(f"{path} has no {name}")
    summary, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
    parts = [f"### {name}", " ".join(summary.split()), f"```python\n{_signature(node, source)}\n```"]
    if rest:
        parts.append(f"```text\n{rest}\n```")
    methods = [f"- `{one.name}`: {_first_line(one)}" for one in _public_methods(node)]
    if methods:
        parts.append("\n".join(methods))
    return parts


def _public_methods(node: ast.FunctionDef | ast.ClassDef) -> list[ast.FunctionDef]:
    if isinstance(node, ast.FunctionDef):
        return []
    return [one for one in node.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]


def _first_line(node: ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def _signature(node: ast.FunctionDef | ast.ClassDef, source: str) -> str:
    """The lines before a function's body; of a class its first line, and the lines before the body of `__init__`."""
    lines = source.splitlines()
    text = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
    if isinstance(node, ast.ClassDef):
        for one in node.body:
            if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                text += "\n" + "\n".join(lines[one.lineno - 1 : one.body[0].lineno - 1])
    return text


@contextmanager
def _plain_terminal() -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)
