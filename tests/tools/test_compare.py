"""`stepclr compare`: a table of runs, as long as they were scored on the same images."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small import call

import stepclr
from stepclr.cli import main

pytestmark = pytest.mark.usefixtures("few_strengths")
OPTIONS: dict[str, Any] = {
    "encoder": "test_resnet",
    "stem": "small-stride2",
    "batch_size": 32,
    "limit": 64,
    "progress": False,
}


def compare(*runs: Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["compare", *map(str, runs)])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A scored SimCLR run, a scored SupCon run, and one that was not scored."""
    home = tmp_path_factory.mktemp("runs")
    made = [home / name for name in ("plain", "supcon", "unscored")]
    stepclr.pretrain("sample:train", made[0], epochs=2, **OPTIONS)
    stepclr.pretrain("sample:train", made[1], epochs=1, loss="supcon", policy="crop", **OPTIONS)
    stepclr.pretrain("sample:unlabeled", made[2], epochs=1, **OPTIONS)
    train, test = (stepclr.open_images(f"sample:{split}", limit=200) for split in ("train", "test"))
    for run in made[:2]:
        stepclr.evaluate(run, train, test, labels_per_class="5,all", draws=2, baselines="pixels")
    return made


def test_a_table_of_runs(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*runs) == 0
    shown = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in shown.splitlines()]
    cells = {line[0]: line[1:] for line in lines if len(line) == 4}
    assert cells["policy"] == ["simclr", "crop", "simclr"]
    assert cells["loss"] == ["nt-xent", "supcon", "nt-xent"]
    assert cells["encoder"] == ["test_resnet"] * 3
    assert cells["epochs"] == ["2", "1", "1"]
    for row in json.loads((runs[1] / "evaluation.json").read_text())["rows"]:
        budget = "all labels" if row["labels_per_class"] == "all" else "5 labels per class"
        std = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
        wanted = f"{100 * row['mean']:.1f}{std} %"
        if row["method"] == "pixels":
            assert f"pixels, {budget}" not in cells
        else:
            assert cells[f"{row['method']}, {budget}"][1:] == [wanted, ""]


def test_runs_scored_on_other_images_are_not_compared(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    stepclr.pretrain("sample:train", other, epochs=1, **OPTIONS)
    stepclr.evaluate(other, "sample:test", "sample:train", probe="knn", baselines=())
    assert compare(runs[0], other) == 2
    said = capsys.readouterr().err
    assert "cannot be compared: the first was scored on 200 images of sample:test" in said
    assert said.count("\n") == 1


def test_runs_that_learned_from_other_labeled_images_are_not_compared(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(runs[0], tmp_path / "other")
    test = stepclr.open_images("sample:test", limit=200)
    stepclr.evaluate(other, stepclr.open_images("sample:train", limit=100), test, probe="knn", baselines=())
    assert compare(runs[0], other) == 2
    said = capsys.readouterr().err
    assert "10 classes from T-shirt/top to Ankle boot, after learning from 200 of sample:train" in said
    assert "after learning from 100 of sample:train; evaluate both with the same images" in said


def test_each_run_is_held_against_every_other(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the first does not say what it learned from, as earlier versions did not."""
    silent, other = (shutil.copytree(runs[0], tmp_path / name) for name in ("silent", "other"))
    scores = json.loads((silent / "evaluation.json").read_text())
    scores["protocol"]["train"] = None
    (silent / "evaluation.json").write_text(json.dumps(scores))
    test = stepclr.open_images("sample:test", limit=200)
    stepclr.evaluate(other, stepclr.open_images("sample:train", limit=100), test, probe="knn", baselines=())
    assert compare(silent, runs[0]) == compare(silent, other) == 0
    assert compare(silent, runs[0], other) == 2
    assert "cannot be compared" in capsys.readouterr().err


def test_knn_with_other_neighbors_is_another_row(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(runs[0], tmp_path / "other")
    train, test = (stepclr.open_images(f"sample:{split}", limit=200) for split in ("train", "test"))
    stepclr.evaluate(other, train, test, probe="knn", baselines=(), knn_k=1)
    assert compare(runs[0], other) == 0
    shown = capsys.readouterr().out
    assert "knn, all labels" in shown
    assert "knn (k 1, temperature 0.1), all labels" in shown


def test_runs_scored_on_images_held_out_by_another_seed_are_not_compared(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = {"share": 0.2, "names_checksum": "0123456789"}
    for seed in (0, 1):
        shutil.copytree(runs[0], tmp_path / str(seed))
        scores = json.loads((runs[0] / "evaluation.json").read_text())
        scores["protocol"]["holdout"] = draw | {"seed": seed}
        (tmp_path / str(seed) / "evaluation.json").write_text(json.dumps(scores))
    assert compare(tmp_path / "0", tmp_path / "1") == 2
    said = capsys.readouterr().err
    for seed in (0, 1):
        assert f"held out with share 0.2, seed {seed} (01234567)" in said


@pytest.mark.parametrize("damage", ["no folder", "no config", "partial scores"])
def test_what_is_not_a_run_is_named(
    damage: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    if damage != "no folder":
        path.mkdir()
    if damage == "partial scores":
        for name in ("config.json", "metrics.jsonl"):
            (path / name).write_bytes((runs[0] / name).read_bytes())
        (path / "evaluation.json").write_text('{"rows": [')
    assert compare(path) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert said.count("\n") == 1


def test_compare_asks_for_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare() == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"loss": "nt-xnet"}, "is corrupt: unknown loss 'nt-xnet'. Did you mean 'nt-xent'?"),
        ("config.json", {"views": "two"}, "is corrupt: views is 'two'"),
        ("metrics.jsonl", {"knn": 76.5}, ", line 1, is corrupt: delete that line"),
        ("metrics.jsonl", {"knn_images": -1}, ", line 1, is corrupt: delete that line"),
        ("metrics.jsonl", {"step": float("nan")}, ", line 1, is corrupt: delete that line"),
        ("metrics.jsonl", {"epoch": float("inf")}, ", line 1, is corrupt: delete that line"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_run_that_was_edited_is_one_line_that_names_the_file(
    command: str,
    name: str,
    change: dict[str, Any],
    said: str,
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(runs[0], tmp_path / "copy"))
    first, *others = (copy / name).read_text().split("\n") if name == "metrics.jsonl" else [(copy / name).read_text()]
    (copy / name).write_text("\n".join([json.dumps(json.loads(first) | change), *others]))
    assert call(command, copy) == 2
    assert f"stepclr: {copy / name}{' ' * said.startswith('is')}{said}" in capsys.readouterr().err
