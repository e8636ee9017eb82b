"""Hooks that mkdocs calls: they insert code from the source, the help of the commands, and the output of a walk.

A line of a page that is only a link with one of these titles is replaced; outside of the site it is a working link:

    [nt_xent](../src/stepclr/loss/contrastive.py "code")     the function, class or constant of that name
    [own_loop.py](../examples/own_loop.py "code")            the whole file
    [what it prints](../src/stepclr/tools/walk.py "step 5")   what `stepclr steps` prints about step 5

A name that the file does not have ends the build. So does a block of code whose title is a file, if the file no longer
has these lines (a line `...` stands for what is left out). An SVG becomes a part of the page, and takes its colors.

README, CONTRIBUTING and the results are pages of the site too, and so is every source file that a page names. Links
between files of the repository become links between pages.
"""

import ast
import posixpath
import re
import textwrap
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from reference import commands_page, python_page

ELSEWHERE = {"readme.md": "README.md", "contributing.md": "CONTRIBUTING.md", "results.md": "benchmarks/RESULTS.md"}
ELSEWHERE |= {  # the results by topic: training.md is the page results-training.md
    f"results-{path.name}": f"benchmarks/results/{path.name}"
    for path in sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("*.md"))
}
CODE = re.compile(r'^\[([\w.]+)\]\(\.\./((?:src/stepclr|examples)/[\w/]+\.py) "code"\)$', re.MULTILINE)
STEP = re.compile(r'^\[[^]]+\]\(\.\./src/stepclr/tools/walk\.py "step (\d)"\)$', re.MULTILINE)
LINK = re.compile(r"\[([^]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
SOURCE = re.compile(r"(?:src/stepclr|examples)/[\w/]+\.py")
QUOTE = re.compile(rf'^```python title="({SOURCE.pattern})"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
TITLE = re.compile(rf'<span class="filename">({SOURCE.pattern}):(\d+)</span>')
# A quotation of the paper, the block of code after it, and the paragraph after that, if there is one.
ENTRY = re.compile(r'<blockquote>.*?</blockquote>\s*<div class="[^"]*highlight">.*?</div>(?:\s*<p>.*?</p>)?', re.DOTALL)
DRAWING = re.compile(r"^!\[([^]]*)\]\((images/[\w-]+\.svg)\)$", re.MULTILINE)
LOOK = "src/stepclr/tools/style.css"  # the colors and type of the report page, which are the site's too


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Build no 404 page: only a server would show it."""
    config.theme.static_templates -= {"404.html"}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are not in docs/: files of the repository, source files, the commands and the Python names."""
    here = root(config)
    texts = [path.read_text() for path in sorted((here / "docs").glob("*.md"))]
    for page, path in ELSEWHERE.items():
        text = (here / path).read_text()
        texts.append(text)
        files.append(File.generated(config, page, content=text))
    for path in sorted(set(SOURCE.findall("\n".join(texts)))):
        if (here / path).exists():
            code = source_text(here, path)
            files.append(File.generated(config, source_page(path), content=code, inclusion=InclusionLevel.NOT_IN_NAV))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    files.append(File.generated(config, "python.md", content=python_page(here)))
    files.append(File.generated(config, "assets/colors.css", content=variables((here / LOOK).read_text())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Insert code, drawings and output into a page, then adapt its links."""
    here = root(config)
    if page.file.src_uri not in ELSEWHERE and not (here / "docs" / page.file.src_uri).exists():
        return markdown  # a generated page: code and help are shown as they are
    markdown = QUOTE.sub(lambda found: quotation(here, found[1], found[2]), markdown)
    markdown = CODE.sub(lambda found: fenced(here, found[2], found[1]), markdown)
    markdown = STEP.sub(lambda found: f"```text\n{steps()[found[1]]}\n```", markdown)
    markdown = DRAWING.sub(lambda found: drawing(here / "docs" / found[2], found[1]), markdown)
    return relinked(markdown, page.file.src_uri, here)


def on_page_content(html: str, page: Page, files: Files, **_: Any) -> str:
    """Link the title of each block of code to that line of the file; wrap entries, and a page that has a class."""

    def link(found: re.Match[str]) -> str:
        target = files.get_file_from_path(source_page(found[1]))
        assert target is not None
        url = f"{target.url_relative_to(page.file)}#line-0-{found[2]}"
        return f'<span class="filename"><a href="{url}">{found[1]}, line {found[2]}</a></span>'

    html = ENTRY.sub(lambda found: f'<div class="entry">{found[0]}</div>', TITLE.sub(link, html))
    return f'<div class="{page.meta["class"]}">{html}</div>' if "class" in page.meta else html


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
    return f'```python title="{path}:{first}" linenums="{first}"\n{code}\n```'


def quotation(here: Path, path: str, code: str) -> str:
    """A block of code that quotes a file, with the number of its first line."""
    line = quoted((here / path).read_text(), code, path)
    return f'```python title="{path}:{line}"\n{textwrap.dedent(code)}```'


def quoted(source: str, code: str, path: str) -> int:
    """The number of the first line of `code` in `source`; its other lines must follow there in the same order.

    Indentation does not count. A line "..." stands for lines that are left out. Raises PluginError for a line that the
    file does not have in this place.
    """
    lines = [line.strip() for line in source.splitlines()]
    wanted = [line.strip() for line in code.splitlines()]
    gaps = [-1, *(place for place, line in enumerate(wanted) if line == "..."), len(wanted)]
    first, after = 0, 0
    for begin, end in pairwise(gaps):
        part = wanted[begin + 1 : end]
        places = [at for at in range(after, len(lines)) if lines[at : at + len(part)] == part]
        if not part or not places:
            raise PluginError(f"{path} no longer has these lines: {' / '.join(part)}")
        after = places[0] + len(part)
        first = first or places[0] + 1
    return first


def source_page(path: str) -> str:
    """The page of a source file: src/stepclr/loss/reference.py -> code/loss/reference.md."""
    return "code/" + path.removeprefix("src/stepclr/").removesuffix(".py") + ".md"


def source_text(here: Path, path: str) -> str:
    """The page of a source file; the search leaves it out."""
    code = (here / path).read_text().rstrip()
    title = path.removeprefix("src/stepclr/")
    head = f"---\ntitle: {title}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# {title}\n\n"
    return f'{head}``````python linenums="1"\n{code}\n``````\n'


def drawing(path: Path, text: str) -> str:
    """An SVG as part of a page, with the text of its image."""
    svg = path.read_text().replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1)
    return f'<div class="drawing">{svg.strip()}</div>'


def variables(style: str) -> str:
    """The rules of a style sheet that only set variables: those of `:root`, also for the dark scheme."""
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
    rules = re.findall(r":root\s*{[^}]*}|@media[^{]*{\s*:root\s*{[^}]*}\s*}", style)
    return "\n".join(rules) + "\n"


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
        if SOURCE.fullmatch(target):
            return f"[{text}]({posixpath.relpath(source_page(target), posixpath.dirname(page) or '.')})"
        return text if text.rstrip("/") == target else f"{text} (`{target}`)"

    return LINK.sub(link, markdown)
