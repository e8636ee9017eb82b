"""The floor plan is what the folders are, and data flows one way through them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stepclr

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "stepclr"
ORDER = [
    "errors",
    "ranks",
    "data",
    "views",
    "model",
    "loss",
    "signals",
    "config",
    "recipes",
    "pretrain",
    "classify",
    "evaluate",
    "use",
    "report",
]


def rooms_imported_by(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        found |= {name.split(".")[1] for name in names if name.startswith("stepclr.")}
    return found


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_from_rooms_before_it(room: str) -> None:
    files = list((SOURCE / room).rglob("*.py")) if (SOURCE / room).is_dir() else [SOURCE / f"{room}.py"]
    for file in files:
        later = rooms_imported_by(file) - set(ORDER[: ORDER.index(room) + 1])
        assert not later, f"{file.relative_to(SOURCE)} imports from {later}"


def test_the_floor_plan_names_every_room() -> None:
    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__", "__main__", "cli"} == set(ORDER)
    for text in (stepclr.__doc__ or "", (ROOT / "README.md").read_text()):
        for room in ORDER:
            assert re.search(rf"\b{room}(/|\.py)", text), f"{room} is missing in a floor plan"


@pytest.mark.parametrize("name", stepclr.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(stepclr, name).__doc__
    assert name in dir(stepclr)


def test_the_two_rooms_named_like_functions_are_called_like_them() -> None:
    for code in (
        "import stepclr; assert callable(stepclr.pretrain) and callable(stepclr.evaluate)",
        "import stepclr.pretrain.folder, stepclr; assert callable(stepclr.pretrain); stepclr.pretrain.folder.Run",
        "from stepclr import evaluate, pretrain; assert callable(pretrain) and callable(evaluate)",
    ):
        subprocess.run([sys.executable, "-c", code], check=True)


def test_import_stepclr_is_light() -> None:
    code = "import sys, stepclr; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'pretain'"):
        stepclr.__getattr__("pretain")


def test_files_stay_small() -> None:
    long = {file.name: n for file in SOURCE.rglob("*.py") if (n := len(file.read_text().splitlines())) > 360}
    assert not long
