"""The site builds without warnings, shows the project's own code, and loads nothing from elsewhere."""

import dataclasses
import html
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image
from touches import Forks
from tyro.conf import Positional

import stepclr
from stepclr.cli import COMMANDS
from stepclr.config import PretrainConfig
from stepclr.data.reading import Reading

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TOPICS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))  # the results by topic
# Pages that are not in docs/.
ELSEWHERE = (
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/RESULTS.md",
    *(f"benchmarks/results/{path.name}" for path in TOPICS),
)
COMPILING = "compiling "  # begins what is printed once per machine, and in each new session of tests
LOADED = {"src", "srcset", "poster", "data"}  # attributes with the URL of something that a page loads
INCLUDED = [
    pytest.param(page.name, name, path, id=f"{page.stem}-{name}")
    for page in sorted(DOCS.glob("*.md"))
    for name, path in re.findall(r'^\[([\w.]+)\]\(\.\./src/([\w/]+)\.py "code"\)$', page.read_text(), re.MULTILINE)
]


def build(python: str, root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """`make docs` of another copy, into another folder."""
    command = [python, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def site(forked: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("docs") / "site"
    done = build(forked.python, ROOT, site)
    assert not done.returncode, done.stderr
    for line in done.stderr.splitlines():
        assert line.startswith(("INFO", COMPILING)), line
    assert not done.stdout
    return site


class Page(HTMLParser):
    """The ids, links, loaded files and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name"):
                self.ids.add(value or "")
            elif name == "href" and tag in ("a", "area"):
                self.links.append(value or "")
            elif name in LOADED or name == "href":
                self.loads.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_there_is_a_page_for_everything(site: Path, pages: dict[Path, Page]) -> None:
    names = {path.relative_to(site).as_posix() for path in pages}
    own = {f"{path.stem}.html" for path in DOCS.glob("*.md")}
    topics = {f"results-{path.stem}.html" for path in TOPICS}
    made = {"readme.html", "contributing.html", "results.html", "commands.html", "python.html"}
    source = {name for name in names if name.startswith("code/")}
    assert topics
    assert names == own | topics | made | source
    assert {"code/loss/reference.html", "code/pretraining/step.html", "code/examples/own_loop.html"} <= source
    assert not list(site.rglob("*.py*"))


def test_every_page_is_two_clicks_from_the_first(site: Path) -> None:
    """By links in the text alone, so that a reader who never looks at the navigation finds it too."""
    clicks = {"index.html": 0}
    for distance in (1, 2):
        for name in [name for name in clicks if clicks[name] == distance - 1]:
            text = (site / name).read_text()
            article = text[text.index("<article") : text.index("</article>")]
            for target in re.findall(r'<a href="([\w-]+\.html)', article):
                clicks.setdefault(target, distance)
    assert {path.name for path in site.glob("*.html")} == clicks.keys()


def test_every_internal_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    seen = 0
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data", "javascript"):
                continue
            assert not parts.path.startswith("/"), f"{path.name}: {link} needs a server"
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.name}: {link}"
            assert target.is_relative_to(site), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].ids | {"__toc"}, f"{path.name}: {link}"
            seen += 1
    assert seen > 200


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert page.loads
        for url in page.loads:
            assert urlsplit(url).scheme in ("", "data"), f"{path.name} loads {url}"
            assert not url.startswith("//"), f"{path.name} loads {url}"
        assert 'class="mermaid"' not in path.read_text()  # the theme would fetch a script for these
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_the_search_has_an_index_and_a_local_worker(site: Path, pages: dict[Path, Page]) -> None:
    index = (site / "search" / "search_index.js").read_text()
    indexed = {entry["location"].split("#")[0] for entry in json.loads(index.removeprefix("var __index = "))["docs"]}
    assert {"walk.html", "commands.html"} <= indexed
    assert "assets/iframe-worker.js" in pages[site / "index.html"].loads


# Included code.


def of_name(path: str, name: str) -> Any:
    """The object of that name in that file."""
    named: Any = importlib.import_module(path.replace("/", "."))
    for part in name.split("."):
        named = inspect.unwrap(getattr(named, part))
    return named


@pytest.mark.parametrize(("page", "name", "path"), INCLUDED)
def test_included_code_exists(page: str, name: str, path: str) -> None:
    """Without a build, so that it fails quickly when a function is renamed."""
    assert of_name(path, name), page


@pytest.mark.parametrize(("page", "name", "path"), INCLUDED)
def test_included_code_is_the_source(page: str, name: str, path: str, site: Path) -> None:
    text = (site / page).with_suffix(".html").read_text()
    blocks = [html.unescape(re.sub(r"<[^>]+>", "", block)) for block in re.findall(r"<code>(.*?)</code>", text, re.S)]
    source = inspect.getsource(of_name(path, name))
    assert inspect.cleandoc("\n" + source) in [inspect.cleandoc("\n" + block) for block in blocks]
    assert f"src/{path}.py" in text


QUOTED = [
    pytest.param(page.name, path, code, id=f"{page.stem}-{path.removeprefix('src/stepclr/')}-{place}")
    for page in sorted(DOCS.glob("*.md"))
    for place, (path, code) in enumerate(
        re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize(("page", "path", "code"), QUOTED)
def test_quoted_lines_are_in_the_file(hooks: ModuleType, page: str, path: str, code: str) -> None:
    """Without a build: a line that has left the file fails here, and the page has to follow."""
    assert hooks.quoted((ROOT / path).read_text(), code, path) > 0, page


def test_the_paper_is_read_in_its_order() -> None:
    heads = re.findall(r"^## (.*)$", (DOCS / "read-simclr.md").read_text(), re.MULTILINE)
    sections = [head.split()[0] if head[0].isdigit() else " ".join(head.split()[:2]) for head in heads]
    of_simclr = sections[: sections.index("SupCon")]
    assert of_simclr[:2] == ["2.1", "Algorithm 1"]
    numbered = [section for section in of_simclr if section != "Algorithm 1"]
    assert numbered == sorted(numbered)
    assert numbered[-1] == "App. B.9"
    assert len(QUOTED) > 50


def test_a_quotation_is_found_by_its_lines(hooks: ModuleType) -> None:
    source = "def f():\n    a = 1\n    b = 2\n    c = 3\n\n\ndef g():\n    a = 1\n    d = 4\n"
    assert hooks.quoted(source, "b = 2\nc = 3\n", "x.py") == 3
    assert hooks.quoted(source, "a = 1\nd = 4\n", "x.py") == 8
    assert hooks.quoted(source, "  a = 1\n  ...\n  d = 4\n", "x.py") == 2
    for gone in ("b = 3", "b = 2\nd = 4", "c = 3\n...\nb = 2", "...", ""):
        with pytest.raises(Exception, match=r"^x.py no longer has these lines: "):
            hooks.quoted(source, gone, "x.py")


def test_the_title_of_a_quotation_leads_to_its_line(site: Path) -> None:
    text = (site / "read-simclr.html").read_text()
    titles = re.findall(r'<span class="filename"><a href="([^"#]+)#line-0-(\d+)">([^<]+), line (\d+)</a></span>', text)
    assert len(titles) == text.count('<div class="entry"><blockquote>')
    assert len(titles) == sum(param.values[0] == "read-simclr.md" for param in QUOTED)
    for url, anchor, path, line in titles:
        assert anchor == line
        assert url == f"code/{path.removeprefix('src/stepclr/').removesuffix('.py')}.html"


def test_the_walk_shows_algorithm_1_and_the_loss() -> None:
    assert {"simclr_step", "train_step", "nt_xent", "contrastive", "ProjectionHead"} <= {
        param.values[1] for param in INCLUDED
    }


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of all that a build reads; a test may change it."""
    copy = tmp_path / "repository"
    shutil.copytree(DOCS, copy / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    shutil.copytree(ROOT / "examples", copy / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", *ELSEWHERE):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


def test_a_missing_function_ends_the_build(forked: Forks, repository: Path) -> None:
    loss = repository / "src" / "stepclr" / "loss" / "contrastive.py"
    loss.write_text(loss.read_text().replace("def nt_xent(", "def nt_xentropy("))
    done = build(forked.python, repository, repository / "site")
    assert done.returncode
    assert "src/stepclr/loss/contrastive.py has no nt_xent" in done.stderr


@pytest.fixture(scope="module")
def hooks() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("hooks")


def test_a_name_is_replaced_by_its_lines(hooks: ModuleType) -> None:
    source = """A: int = 1


@one
@two
def f(
    x,
):
    'Says.'
    return x  # so


class C:
    def f(self):
        g()

        h()

    B = (
        2,
    )
"""
    assert hooks.lines_of(source, "A", "x.py") == (1, "A: int = 1")
    assert hooks.lines_of(source, "f", "x.py") == (4, "\n".join(source.splitlines()[3:10]))
    assert hooks.lines_of(source, "C.f", "x.py") == (14, "def f(self):\n    g()\n\n    h()")
    assert hooks.lines_of(source, "C.B", "x.py") == (19, "B = (\n    2,\n)")
    for name in ("g", "C.g", "f.x", "B"):
        with pytest.raises(Exception, match=rf"^x.py has no {name}$"):
            hooks.lines_of(source, name, "x.py")


def test_links_between_files_become_links_between_pages(hooks: ModuleType) -> None:
    def relinked(page: str, text: str) -> str:
        linked: str = hooks.relinked(text, page, ROOT)
        return linked

    text = "[a](docs/scale.md#b) [c](https://x.y/z.md) [d](#e)"
    assert relinked("readme.md", text) == text.replace("docs/", "")
    assert relinked("scale.md", "[RESULTS](../benchmarks/RESULTS.md)") == "[RESULTS](results.md)"
    assert relinked("results.md", "[a](results/loss.md#b)") == "[a](results-loss.md#b)"
    assert relinked("results-loss.md", "[a](../RESULTS.md#machine)") == "[a](results.md#machine)"
    assert relinked("contributing.md", "[README](README.md#the-floor-plan)") == "[README](readme.md#the-floor-plan)"
    assert relinked("walk.md", "![p](images/views.png)") == "![p](images/views.png)"
    assert relinked("walk.md", "[step](../src/stepclr/pretraining/step.py)") == "[step](code/pretraining/step.md)"
    assert relinked("readme.md", "[LICENSE](LICENSE), [docs/](docs/)") == "LICENSE, docs/"
    with pytest.raises(Exception, match="which does not exist"):
        relinked("readme.md", "[a](src/stepclr/gone.py)")


def test_every_question_is_answered_and_leads_on() -> None:
    """The page is one click from the first, and what an answer is about one more."""
    text = (DOCS / "questions.md").read_text()
    answers = re.findall(r"^### ([^\n]*)\n\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(answers) > 10
    for question, answer in answers:
        assert question.endswith("?")
        assert re.search(r"\]\([\w./-]+\.md", answer), question


def test_the_navigation_goes_by_what_a_reader_wants(site: Path) -> None:
    text = (site / "index.html").read_text()
    tabs = text[text.index('class="md-tabs__list"') :]
    tabs = tabs[: tabs.index("</nav>")]
    assert re.findall(r"\S.*(?=\n\s*</a>)", tabs) == ["Start", "Use", "Understand", "Reference", "Evidence"]
    nav = text[text.index('class="md-nav md-nav--primary') :]
    pages = re.findall(r'<a href="([\w-]+\.html)" class="md-nav__link', nav)
    assert list(dict.fromkeys(pages))[:3] == ["index.html", "three-commands.html", "from-photos.html"]


def test_the_colors_are_those_of_the_report(site: Path) -> None:
    colors = (site / "assets" / "colors.css").read_text()
    style = (ROOT / "src" / "stepclr" / "tools" / "style.css").read_text()
    defined = set(re.findall(r"(--[\w-]+):", colors))
    used = set(re.findall(r"var\((--(?!md-)[\w-]+)\)", (site / "assets" / "site.css").read_text()))
    assert used <= defined
    assert used >= {"--ink", "--paper", "--accent"}
    assert set(re.findall(r"#[0-9a-f]{6}", colors)) <= set(re.findall(r"#[0-9a-f]{6}", style))
    assert "prefers-color-scheme: dark" in colors
    assert "body" not in colors


# What is made by running the code.


def test_the_walk_shows_what_the_steps_print(site: Path, pages: dict[Path, Page]) -> None:
    text = pages[site / "walk.html"].text
    for step, name in enumerate(("data", "views", "encoder", "projection head", "contrastive loss"), 1):
        assert f"step {step}  {name}\n  in " in text
    assert "sample:train: 64 images, 64 of them with a label, 0 unreadable" in text
    assert "z_i, z_j [64, 128] each; temperature 0.2: 128 anchors, 126 negatives each" in text


def test_the_sheet_of_views_shows_the_recipe() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        images = importlib.import_module("images")
    stored = np.asarray(Image.open(DOCS / "images" / "views.png"), np.int16)
    drawn = np.asarray(images.views(), np.int16)
    assert stored.shape == drawn.shape
    assert np.abs(stored - drawn).max() <= 2  # of 255: another renderer may round differently


# The reference.


def test_every_public_name_is_there_with_its_docstring(site: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "python.html").read_text()))
    heads = re.findall(r'<h3 id="[\w-]+">(\w+)', (site / "python.html").read_text())
    assert sorted(heads) == stepclr.__all__
    assert "NT-Xent (SimCLR eq. 1), the mean over the anchors" in text
    assert "Raises: StepclrError for shapes that differ" in text


def options(command: Any) -> set[str]:
    """The options of a command, from its signature."""
    positional = typing.get_args(Positional[int])[1]
    flags = set()
    for name, kind in typing.get_type_hints(command, include_extras=True).items():
        annotations = getattr(kind, "__metadata__", ())
        settings = getattr(kind, "__origin__", kind)
        if settings in (PretrainConfig, Reading):
            flags |= {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings)}
        elif name != "return" and positional not in annotations:
            other = next((one.name for one in annotations if getattr(one, "name", None)), None)
            flags.add(f"--{other or name.replace('_', '-')}")
    return flags


def test_every_command_is_there_with_every_option(site: Path) -> None:
    text = (site / "commands.html").read_text()
    sections = re.split(r'<h2 id="[\w-]+">stepclr ', text)[1:]
    assert [re.match(r"[\w-]+", section)[0] for section in sections] == list(COMMANDS)  # type: ignore[index]
    for section, command in zip(sections, COMMANDS.values(), strict=True):
        shown = html.unescape(re.sub(r"<[^>]+>", "", section))
        for option in options(command):
            assert re.search(rf"^ +(-\w.*, )?{option}\b", shown, re.MULTILINE), f"{command.__name__} {option}"
    assert options(COMMANDS["finetune"]) >= {"--train", "--labels-per-class", "--from"}
    assert options(COMMANDS["pretrain"]) >= {"--resume", "--encoder", "--keep-every"}
    assert "\x1b" not in text
    shown = html.unescape(re.sub(r"<[^>]+>", "", text))
    assert 80 < max(map(len, re.findall(r"^  +--\w.*$", shown, re.MULTILINE))) <= 88


# The notebook.


def test_the_notebook_runs_from_top_to_bottom(forked: Forks, tmp_path: Path) -> None:
    """With fewer epochs and images, and in a kernel that is a fork."""
    text = (DOCS / "walk.ipynb").read_text()
    stored = json.loads(text)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in stored["cells"])
    for long, short in (("epochs=8", "epochs=1"), ('\\"sample:test\\", limit=300', '\\"sample:test\\", limit=100')):
        assert long in text
        text = text.replace(long, short)
    (tmp_path / "walk.ipynb").write_text(text)
    code = (
        "import sys, nbformat, nbclient\n"
        "book = nbformat.read('walk.ipynb', 4)\n"
        "sys.executable = sys.argv[1]\n"
        "nbclient.NotebookClient(book, timeout=200).execute()\n"
        "nbformat.write(book, 'ran.ipynb')\n"
    )
    command = [sys.executable, "-c", code, forked.python]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250)
    assert not done.returncode, done.stderr
    outputs = [o for cell in json.loads((tmp_path / "ran.ipynb").read_text())["cells"] for o in cell.get("outputs", [])]
    printed = "".join("".join(o["text"]) for o in outputs if o.get("name") == "stdout")
    assert not [o for o in outputs if o.get("name") == "stderr" and not "".join(o["text"]).startswith(COMPILING)]
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) == 4
    losses = re.search(r"plain ([\d.]+), nt_xent ([\d.]+)", printed)
    assert losses
    assert abs(float(losses[1]) - float(losses[2])) < 1e-4
    for method in ("pixels", "random", "simclr", "knn"):
        assert re.search(rf"^{method} .* top-1 \d+\.\d( ± \d+\.\d)? %$", printed, re.MULTILINE)


def test_the_notebook_has_the_same_steps_as_the_page() -> None:
    cells = json.loads((DOCS / "walk.ipynb").read_text())["cells"]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    heads = [re.findall(r"^## (Step \d: .*)$", text, re.MULTILINE) for text in (prose, (DOCS / "walk.md").read_text())]
    assert heads[0] == heads[1]
    assert len(heads[0]) == 8


# Contributing.


def test_everything_that_contributing_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    quoted = re.findall(r"`([^`\n]+)`", text)
    paths = {word for word in quoted if re.fullmatch(r"(src|tests|docs|benchmarks)/[\w./-]*|[\w-]+\.(py|yml)", word)}
    rooms = ROOT / "src" / "stepclr"
    missing = {path for path in paths if not any((place / path).exists() for place in (ROOT, rooms, rooms / "loss"))}
    assert not missing
    assert len(paths) > 25
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]
    known = set(re.findall(r"\w+", "\n".join(file.read_text() for file in files)))
    names = {name for word in quoted for name in re.findall(r"^(\w+)(?:\(.*\))?$", word)}
    assert not names - known


@pytest.mark.parametrize("target", ["check", "test", "docs"])
def test_contributing_names_the_make_targets(target: str) -> None:
    assert f"make {target}" in (ROOT / "CONTRIBUTING.md").read_text()
    assert re.search(rf"^{target}: .venv/ready", (ROOT / "Makefile").read_text(), re.MULTILINE)
