"""The floor plan is what the folders are, and data flows one way through the files."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from operator import attrgetter
from pathlib import Path

import pytest

import stepclr
from stepclr.loss.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "stepclr"
FOUNDATIONS = ["errors", "threads", "splitmix", "io", "machine_code", "device", "distributed"]
ROOMS = ["data", "views", "model", "loss", "metrics", "config", "recipes", "pretraining", "evaluation", "tools", "cli"]
ORDER = [*FOUNDATIONS, *ROOMS]
FILES = sorted(SOURCE.rglob("*.py"))


def module_of(file: Path) -> str:
    """`data/shards/index.py` -> `data.shards.index`; a package's `__init__.py` -> its name."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imports_of(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a file imports from the package, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stepclr":
            module = (node.module or "").partition(".")[2]
            for alias in node.names:
                whole = f"{module}.{alias.name}".lstrip(".")
                yield (whole, "") if whole in MODULES else (module, alias.name)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("stepclr."):
                    yield alias.name.partition(".")[2], ""


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_imports_only_from_rooms_before_it(file: Path) -> None:
    room = module_of(file).split(".")[0]
    if room in ("", "__main__"):
        return  # the public face may name every room
    for module, name in imports_of(file):
        assert module or name == "__version__", f"{file} imports {name} from the public face"
        below = ORDER[: ORDER.index(room) + 1]
        assert not module or module.split(".")[0] in below, f"{file} imports upwards, from {module}"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_imports_what_is_public_from_the_file_that_defines_it(file: Path) -> None:
    for module, name in imports_of(file):
        assert not re.match("_[^_]", name), f"{file} imports the private name {name} of {module}"
        face = MODULES[module].name == "__init__.py" and module not in ("", "cli")
        assert not face, f"{file} imports {name} from the package {module}, not from the file that defines it"


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: {target for target, _ in imports_of(file) if target} for module, file in MODULES.items() if module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these files import each other: {error.args[1]}")


def test_no_other_file_compares_the_name_of_a_loss() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                assert not constants & OBJECTIVES.keys(), f"{file}, line {node.lineno}: use the row of OBJECTIVES"


def test_the_floor_plan_names_every_room() -> None:
    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__", "__main__"} == set(ORDER)
    for text in (stepclr.__doc__ or "", (ROOT / "README.md").read_text()):
        for room in ORDER:
            assert re.search(rf"\b{room}(/|\.py)", text), f"{room} is missing in a floor plan"


def test_a_package_says_what_each_of_its_files_is_for() -> None:
    for package in (
        file for file in FILES if file.name == "__init__.py" and file.parent not in (SOURCE, SOURCE / "cli")
    ):
        text = ast.get_docstring(ast.parse(package.read_text())) or ""
        for file in package.parent.iterdir():
            if file.suffix == ".py" and file != package:
                assert re.search(rf"\b{file.name}\b", text), f"{package} does not mention {file.name}"


@pytest.mark.parametrize("name", stepclr.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(stepclr, name).__doc__
    assert name in dir(stepclr)


def test_the_stub_has_nothing_but_public_names() -> None:
    tree = ast.parse((SOURCE / "__init__.pyi").read_text())
    seen = [alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(map(str, seen)) == stepclr.__all__


def test_import_stepclr_is_light() -> None:
    code = "import sys, stepclr; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'pretain'"):
        attrgetter("pretain")(stepclr)


def test_files_stay_small() -> None:
    long = {file.name: n for file in FILES if (n := len(file.read_text().splitlines())) > 360}
    assert not long
