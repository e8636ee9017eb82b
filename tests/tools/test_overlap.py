"""Test images that are in train too: `evaluate` and `finetune` count them as the doctor does, and score the others."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from test_duplicates import compressed, scene

import stepclr
from stepclr.cli import main
from stepclr.data.sources import Source
from stepclr.evaluation import overlap
from stepclr.evaluation.results import Scores
from stepclr.model.files import save_encoder
from stepclr.tools.doctor.findings import leakage_findings
from stepclr.tools.doctor.scan import scan

CLEAN = 12  # test images that are not in train


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(stepclr.build_encoder("test_resnet", "small-stride2", size=48), folder / "encoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Scenes of two classes; of the training images, one is in test with the same bytes, one as PNG, two compressed."""
    home = tmp_path_factory.mktemp("sets")
    train, test = home / "train", home / "test"
    for seed in range(24 + CLEAN):
        path = (train if seed < 24 else test) / ("left" if seed % 2 else "right") / f"{seed:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(seed).save(path, quality=92)
    shutil.copy(train / "right" / "00.jpg", test / "right" / "same.jpg")
    Image.open(train / "left" / "01.jpg").save(test / "left" / "same.png")
    compressed(scene(2), 60).save(test / "right" / "near.png")
    compressed(scene(3), 60).save(test / "left" / "near.png")
    return train, test


def evaluate(encoder: Path, train: Source, test: Source) -> Scores:
    return stepclr.evaluate(encoder, train, test, labels_per_class="2,all", draws=2, probe="knn", baselines=())


def test_they_are_counted_as_the_doctor_counts_them_and_left_out_of_the_clean_score(
    encoder: Path, sets: tuple[Path, Path]
) -> None:
    train, test = map(stepclr.open_images, sets)
    scores = evaluate(encoder, train, test)
    found = scores.protocol["test_images_in_train"]
    assert (found["identical"], found["near_identical"], found["clean"]) == (2, 2, CLEAN)
    counts = {finding.name: finding.count for finding in leakage_findings(scan(train), scan(test))}
    assert (counts["leakage-exact"], counts["leakage-near"]) == (2, 2)
    assert "right/same.jpg = right/00.jpg" in found["examples"]

    without = test.take([i for i, name in enumerate(test.names) if "same" not in name and "near" not in name])
    alone = evaluate(encoder, train, without)
    for row, clean in zip(scores.rows, alone.rows, strict=True):
        assert (row.clean_mean, row.clean_std, row.clean_values) == (clean.mean, clean.std, clean.values)
        assert clean.clean_values is None
    assert alone.protocol["test_images_in_train"]["clean"] == CLEAN


def test_the_command_line_says_it_and_shows_both_scores(
    encoder: Path, sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = map(str, sets)
    words = ["evaluate", str(encoder), "--train", train, "--test", test, "--probe", "knn", "--baselines", "none"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "clean ┃" in said
    assert "4 of the 16 test images are in train too (2 identical, 2 nearly identical), such as left/same.png" in said


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_a_test_set_that_is_all_in_train_is_refused(
    command: str, encoder: Path, sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, str(encoder), "--train", str(sets[0]), "--test", str(sets[0])])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("stepclr: all 24 images of ")


def test_versions_are_looked_for_up_to_a_limit_that_is_said(
    encoder: Path, sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "MAX_PAIRS", 100)
    found = evaluate(encoder, *sets).protocol["test_images_in_train"]
    assert (found["identical"], found["near_identical"], found["clean"]) == (2, None, CLEAN + 2)
