"""config.json is what was done: of a run that was extended, moved, or given more than its images can fill."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small import photos_in, same
from torch import nn

import stepclr
from stepclr.config import CONFIG_FILE
from stepclr.tools.compare import compare_table
from stepclr.tools.notes import notes

IMAGES = 32  # two steps an epoch


class Net(nn.Module):
    """A small network that fails at a step, as if the process was killed there."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.conv, self.steps, self.fails_at = nn.Conv2d(3, 8, 3, stride=4), 0, fails_at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            if self.steps == self.fails_at:
                raise RuntimeError("killed")
            self.steps += 1
        h: torch.Tensor = self.conv(x).relu().mean((2, 3))
        return h


def small_run(out: Path, source: Any = "sample:unlabeled", **options: Any) -> stepclr.Run:
    settings: dict[str, Any] = {"encoder": Net(), "batch_size": 16, "head": "8-8", "limit": IMAGES, "progress": False}
    return stepclr.pretrain(source, out, **(settings | options))


def cells(run: stepclr.Run) -> dict[Any, Any]:
    table = compare_table([run])
    return dict(zip(table.columns[0].cells, table.columns[1].cells, strict=True))


def test_a_run_extended_and_killed_continues_to_its_new_end(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", epochs=1)
    with pytest.raises(RuntimeError, match="killed"):
        small_run(run.folder, encoder=Net(fails_at=3), resume=True, epochs=4, keep_every=2)
    assert (run.config.epochs, run.config.keep_every) == (4, 2)
    assert cells(run)["epochs"] == "2 of 4"
    small_run(run.folder, resume=True)
    assert run.metrics[-1]["step"] == 8
    assert cells(run)["epochs"] == "4"


def test_a_run_cannot_end_before_the_step_it_has_reached(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", epochs=3)
    before = (run.folder / CONFIG_FILE).read_bytes()
    with pytest.raises(stepclr.StepclrError, match=r"^\S+ has done 3 epochs, so epochs must be at least that, not 2$"):
        small_run(run.folder, resume=True, epochs=2)
    assert (run.folder / CONFIG_FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("choice", "words"), [({"limit": 20}, "limit 32, not 20"), ({"classes": ["Bag"]}, "the classes all, not Bag")]
)
def test_a_run_is_not_resumed_on_other_images_than_it_chose(choice: dict[str, Any], words: str, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "sample:train", epochs=1)
    with pytest.raises(stepclr.StepclrError, match=f"was started with {words}"):
        small_run(run.folder, "sample:train", epochs=2, resume=True, **choice)
    small_run(run.folder, "sample:train", epochs=2, resume=True, limit=None)


def test_a_run_of_classes_whose_names_hold_commas_resumes(tmp_path: Path) -> None:
    for name in ("a, b", "c"):
        photos_in(tmp_path / "photos" / name, IMAGES // 2)
    run = small_run(tmp_path / "run", tmp_path / "photos", epochs=1, classes="a, b,c,c")
    small_run(run.folder, tmp_path / "photos", epochs=2, resume=True, classes="a, b,c,c")
    assert run.config.classes == ["a, b", "c"]
    assert run.metrics[-1]["step"] == 4


def test_a_second_process_that_is_refused_changes_no_record(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    run = small_run(tmp_path / "run", epochs=1)
    with run.held(), pytest.raises(stepclr.StepclrError, match="another process is training"):
        small_run(run.folder, resume=True, epochs=5)
    assert run.config.epochs == 1


def test_a_run_finds_its_images_from_any_folder_and_after_they_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        photos_in(tmp_path / "photos" / name, IMAGES // 2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    small_run(Path("run"), "photos", epochs=1, monitor="photos")
    run = stepclr.Run(tmp_path / "run")
    assert run.config.source == run.config.monitor == str(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(run.images()) == IMAGES

    (tmp_path / "photos").rename("moved")
    small_run(run.folder, "moved", epochs=2, monitor="moved", resume=True)
    assert run.config.source == run.config.monitor == str(tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path)
    assert len(run.images()) == IMAGES


@pytest.mark.parametrize("others", [[], ["more"]])
def test_a_run_on_image_files_finds_them_and_their_labels(
    others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos_in(tmp_path / "photos", 24)
    photos_in(tmp_path / "more", 8)
    monkeypatch.chdir(tmp_path)
    files = [f"photos/{path.name}" for path in sorted(Path("photos").iterdir())]
    labels = {file: "ab"[i % 2] for i, file in enumerate(files)}
    images = stepclr.open_images([*files, *others], labels=labels)
    run = stepclr.Run(tmp_path / "run")
    small_run(run.folder, images, epochs=1)
    small_run(run.folder, [*files, *others], epochs=2, resume=True)
    monkeypatch.chdir(tmp_path / "more")
    again = run.images()
    assert run.config.source == [str(tmp_path / source) for source in [*files, *others]]
    assert run.config.source_text == f"{tmp_path / files[0]} and {23 + len(others)} others"
    assert torch.equal(torch.stack(list(again.read(range(24)))), torch.stack(list(images.read(range(24)))))
    assert (again.labels.tolist(), again.classes) == (images.labels.tolist(), ["a", "b"])


def test_the_rate_is_that_of_the_batch_that_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = small_run(tmp_path / "exact", epochs=2, batch_size=IMAGES, encoder="test_resnet")
    assert exact.metrics[-1]["step"] == 2
    options: dict[str, Any] = {"epochs": 2, "encoder": "test_resnet", "keep_every": 3, "progress": True}
    larger = small_run(tmp_path / "larger", batch_size=4096, **options)
    said = capsys.readouterr().err
    assert f"batches of {IMAGES} images instead of 4096: there are no more" in said
    assert "keep_every 3 keeps no checkpoint besides the last two: the run has 2 epochs" in said
    assert "stem small, for views of up to 64 px; small-stride2 takes a fourth of the operations" in said
    assert larger.config.batch_size == IMAGES
    assert [line["lr"] for line in larger.metrics] == [line["lr"] for line in exact.metrics]
    assert same(larger, exact)
    small_run(larger.folder, epochs=2, batch_size=4096, encoder="test_resnet", resume=True)  # the same command again


@pytest.mark.parametrize("warmup", [2.0, 10.0])
def test_a_warm_up_that_does_not_end_before_the_run_is_shortened(
    warmup: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run(tmp_path / "run", epochs=2, warmup=warmup, progress=True)
    assert run.config.warmup == 0.2
    assert f"warm-up of 0.2 epochs instead of {warmup:g}" in capsys.readouterr().err
    assert run.metrics[-1]["lr"] < run.metrics[0]["lr"] or run.metrics[-1]["lr"] < 0.9 * run.config.lr * 16 / 256
    small_run(run.folder, epochs=2, warmup=warmup, resume=True)  # the same command again


def test_scores_of_an_earlier_encoder_are_not_shown_for_the_later_one(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "sample:train", epochs=1, encoder="test_resnet", limit=40)
    train, test = (stepclr.open_images(f"sample:{split}", limit=20) for split in ("train", "test"))
    stepclr.evaluate(run, train, test, probe="knn", baselines=())
    assert "knn, all labels" in cells(run)
    shutil.copytree(run.folder, tmp_path / "copy")
    assert "knn, all labels" in cells(stepclr.Run(tmp_path / "copy"))
    small_run(run.folder, "sample:train", epochs=2, encoder="test_resnet", limit=40, resume=True)
    assert "knn, all labels" not in cells(run)
    assert cells(run)["scores"] == "of an earlier encoder: evaluate again"


def test_a_run_that_was_extended_and_has_not_ended_has_no_score(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "sample:train", epochs=1)
    other = small_run(tmp_path / "other", "sample:train", epochs=1, seed=1)
    train, test = (stepclr.open_images(f"sample:{split}", limit=20) for split in ("train", "test"))
    scoring: dict[str, Any] = {"probe": "knn", "baselines": (), "module": Net()}
    stepclr.evaluate(run, train, test, **scoring)
    with pytest.raises(RuntimeError, match="killed"):
        small_run(run.folder, "sample:train", encoder=Net(fails_at=3), resume=True, epochs=4)
    assert cells(run)["scores"] == "of an earlier encoder: evaluate again"
    says = "The run has done 2 of its 4 epochs: its encoder is the one of before it went on."
    assert says in notes(stepclr.evaluate(run, train, test, **scoring))
    for first, second in ((run, other), (other, run)):
        with pytest.raises(
            stepclr.StepclrError, match=f"^{run.folder} has not ended; resume it, so that all runs have as many"
        ):
            stepclr.evaluate(first, train, test, seeds=second, **scoring)
    small_run(run.folder, "sample:train", resume=True)
    assert says not in notes(stepclr.evaluate(run, train, test, **scoring))
    assert "knn, all labels" in cells(run)
