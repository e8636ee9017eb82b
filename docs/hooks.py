"""Hooks that mkdocs calls: they insert code from the source, the help of the commands, and the output of a walk.

A line of a page that is only a link with one of these titles is replaced; outside of the site it is a working link:

    [nt_xent](../src/stepclr/loss/contrastive.py "code")     the function, class or constant of that name
    [own_loop.py](../examples/own_loop.py "code")            the whole file
    [what it prints](../src/stepclr/tools/walk.py "step 5")   what `stepclr steps` prints about step 5

A name that the file does not have ends the build. README, CONTRIBUTING and the results are pages of the site too. Links
between files of the repository become links between pages.
"""

import ast
import io
import os
import posixpath
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ELSEWHERE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "results.md": "benchmarks/RESULTS.md"}
ELSEWHERE |= {  # the results by topic: training.md is the page results-training.md
    f"results-{path.name}": f"benchmarks/results/{path.name}"
    for path in sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("*.md"))
}
WIDTH = 88  # of the commands' help, characters
CODE = re.compile(r'^\[([\w.]+)\]\(\.\./((?:src/stepclr|examples)/[\w/]+\.py) "code"\)$', re.MULTILINE)
STEP = re.compile(r'^\[[^]]+\]\(\.\./src/stepclr/tools/walk\.py "step (\d)"\)$', re.MULTILINE)
LINK = re.compile(r"\[([^]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Build no 404 page: only a server would show it."""
    config.theme.static_templates -= {"404.html"}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are not in docs/: files of the repository, and the commands."""
    for page, path in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(root(config) / path).read_text()))
    files.append(File.generated(config, "commands.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Insert code and output into a page, then adapt its links."""
    here = root(config)
    markdown = CODE.sub(lambda found: fenced(here, found[2], found[1]), markdown)
    markdown = STEP.sub(lambda found: f"```text\n{steps()[found[1]]}\n```", markdown)
    return relinked(markdown, page.file.src_uri, here)


def root(config: MkDocsConfig) -> Path:
    """The repository."""
    return Path(config.config_file_path).parent


def fenced(here: Path, path: str, name: str) -> str:
    """The code of that name, or the file of that name, as a Markdown block with the file's name and line numbers."""
    source = (here / path).read_text()
    if name == Path(path).name:
        first, code = 1, source.rstrip()
    else:
        first, code = lines_of(source, name, path)
    return f'```python title="{path}" linenums="{first}"\n{code}\n```'


def lines_of(source: str, name: str, path: str) -> tuple[int, str]:
    """The first line number of the function, class or constant `name` (or `Class.method`), and its code."""
    body: list[ast.stmt] = ast.parse(source).body
    node: ast.stmt | None = None
    for part in name.split("."):
        node = next((one for one in body if part in _names(one)), None)
        if node is None:
            raise PluginError(f"{path} has no {name}")
        body = getattr(node, "body", [])
    assert node is not None
    above = [decorator.lineno for decorator in getattr(node, "decorator_list", [])]
    first = min([node.lineno, *above])
    return first, textwrap.dedent("\n".join(source.splitlines()[first - 1 : node.end_lineno]))


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


@cache
def steps() -> dict[str, str]:
    """What the walk through 64 bundled images prints about each step."""
    import stepclr
    from stepclr.recipes import recipe_config
    from stepclr.tools.walk import STEPS, Walk

    walk = Walk(stepclr.open_images("sample:train", limit=64), recipe_config("sample"))
    return {str(step): "\n".join(walk.lines(step)) for step in STEPS}


def reference() -> str:
    """The page of commands: the help of each, at a fixed width and without colors."""
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


@contextmanager
def _plain_terminal() -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


def relinked(markdown: str, page: str, here: Path) -> str:
    """Turn links between files into links between pages; of a link to any other file, keep the name."""
    folder = posixpath.dirname(ELSEWHERE.get(page, f"docs/{page}"))
    pages = {path: page for page, path in ELSEWHERE.items()}

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], posixpath.normpath(posixpath.join(folder, found[2])), found[3] or ""
        if target in pages:
            return f"[{text}]({pages[target]}{anchor})"
        if target.startswith("docs/"):
            return f"[{text}]({target.removeprefix('docs/')}{anchor})"
        if not (here / target).exists():
            raise PluginError(f"{page} links to {found[2]}, which does not exist")
        return text if text.rstrip("/") == target else f"{text} (`{target}`)"

    return LINK.sub(link, markdown)
