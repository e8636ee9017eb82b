"""What a user of a classifier asks for: one image, several, a folder; on the screen, as a file, as a sheet."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small import call

import stepclr
from stepclr.errors import StepclrError
from stepclr.evaluation.predict import classify
from stepclr.model.build import build_encoder
from stepclr.model.classifier import Classifier
from stepclr.model.files import save_classifier
from stepclr.tools.images import LINE, THUMBNAIL_PX, contact_sheet
from stepclr.tools.predicted import COLUMNS, SCREEN_ROWS

CLASSES = ["ant", "bee", "cat, tabby"]
COUNT = 25


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that was not trained, but tells images apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Classifier(build_encoder("test_resnet", "small-stride2", size=16), CLASSES)
        torch.nn.init.normal_(made.linear.weight, std=3)
    path = tmp_path_factory.mktemp("classifier") / "c.safetensors"
    save_classifier(made.eval(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COUNT images of noise and a file that is not readable."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{i:02}.png")
    (folder / "truncated.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture
def here(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the images, as the working directory."""
    monkeypatch.chdir(photos)
    return photos


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table of predictions."""
    if path.suffix == ".json":
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        return rows
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    with path.open(newline="") as file:
        return [
            {k: v if k in ("path", "predicted") else float(v) for k, v in row.items()} for row in csv.DictReader(file)
        ]


def margins(rows: list[dict[str, Any]]) -> list[float]:
    ordered = [sorted(row[f"p:{name}"] for name in CLASSES) for row in rows]
    return [best - second for _, second, best in ordered]


def test_the_three_formats_say_the_same(classifier: Path, photos: Path, tmp_path: Path) -> None:
    probabilities = classify(classifier, photos).probabilities
    tables = []
    for suffix in ("csv", "parquet", "json"):
        out = tmp_path / suffix / f"p.{suffix}"
        assert call("predict", classifier, photos, "--out", out) == 0
        tables.append(read(out))
        assert "truncated.jpg" in out.with_suffix(".skipped.csv").read_text()
    assert tables[0] == tables[1] == tables[2]
    assert [row["path"] for row in tables[0]] == [f"{i:02}.png" for i in range(COUNT)]
    for row, own in zip(tables[0], probabilities, strict=True):
        assert list(row) == ["path", "predicted", "probability", *(f"p:{name}" for name in CLASSES)]
        assert row["predicted"] == CLASSES[own.argmax()]
        assert row["probability"] == row[f"p:{row['predicted']}"]
        np.testing.assert_allclose([row[f"p:{name}"] for name in CLASSES], own, rtol=1e-5)


def test_the_list_of_what_was_skipped_is_that_of_this_command(classifier: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    assert call("predict", classifier, photos, "--out", out) == 0
    assert (tmp_path / "p.skipped.csv").exists()
    assert call("predict", classifier, photos / "00.png", "--out", out) == 0
    assert [row["path"] for row in read(out)] == [str(photos / "00.png")]
    assert not (tmp_path / "p.skipped.csv").exists()


def test_the_least_certain_come_first(classifier: Path, photos: Path, tmp_path: Path) -> None:
    plain, ordered = tmp_path / "plain.csv", tmp_path / "sorted.csv"
    assert call("predict", classifier, photos, "--out", plain) == 0
    assert call("predict", classifier, photos, "--sort", "--out", ordered) == 0
    rows = read(ordered)
    assert sorted(rows, key=lambda row: str(row["path"])) == read(plain)
    assert margins(rows) == sorted(margins(rows))
    assert margins(rows)[0] < margins(rows)[-1]


def test_files_are_predicted_as_in_their_folder(
    classifier: Path, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole.json"
    assert call("predict", classifier, ".", "--out", whole) == 0
    row_of = {row["path"]: row for row in read(whole)}
    # As a shell expands *.* : order as given, and what cannot be read is left out.
    out = tmp_path / "some.json"
    capsys.readouterr()
    assert call("predict", classifier, "03.png", "truncated.jpg", here / "01.png", "--out", out) == 0
    shown = capsys.readouterr()
    assert "2 predictions; 1 images could not be read" in shown.out
    assert "truncated.jpg" in shown.err
    several = read(out)
    assert [row["path"] for row in several] == ["03.png", str(here / "01.png")]
    for row, name in zip(several, ("03.png", "01.png"), strict=True):
        assert row["predicted"] == row_of[name]["predicted"]
        assert row["probability"] == pytest.approx(row_of[name]["probability"], rel=1e-4)
    # In Python too.
    one, two = stepclr.predict(classifier, "03.png"), stepclr.predict(classifier, ["03.png", here / "01.png"])
    assert (list(one.names), list(two.names)) == (["03.png"], ["03.png", str(here / "01.png")])
    np.testing.assert_allclose(one.probabilities[0], two.probabilities[0], rtol=1e-4)


def test_without_out_the_screen_shows_a_few(classifier: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("predict", classifier, "03.png") == 0
    shown = capsys.readouterr().out
    row = classify(classifier, "03.png").probabilities[0]
    assert "03.png" in shown
    assert f"{100 * row.max():.1f} %" in shown
    assert CLASSES[row.argmax()] in shown
    assert "--out" not in shown
    assert call("predict", classifier, here, "--sort") == 0
    shown = capsys.readouterr().out
    first = classify(classifier, here).least_certain_first().images.names[:SCREEN_ROWS]
    assert [name for name in shown.split() if name.endswith(".png")] == list(first)
    assert f"{SCREEN_ROWS} of {COUNT} images are shown; --out FILE.csv writes all" in shown
    assert sorted(path.name for path in here.iterdir()) == [*(f"{i:02}.png" for i in range(COUNT)), "truncated.jpg"]


def test_labels_that_the_images_have_are_compared_with_the_predictions(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(photos.glob("*.png"))
    folder = dict.fromkeys(names[:3], CLASSES[0]) | dict.fromkeys(names[3:21], CLASSES[1])
    folder |= dict.fromkeys(names[21:], "dog")  # not one of the classifier's classes
    for name, label in folder.items():
        (tmp_path / label).mkdir(exist_ok=True)
        shutil.copy(name, tmp_path / label)
    assert call("predict", classifier, tmp_path, "--out", tmp_path / "p.csv") == 0
    rows = read(tmp_path / "p.csv")
    right = [[row["predicted"] == label for row in rows if row["path"].startswith(label)] for label in CLASSES[:2]]
    top1 = 100 * np.mean(np.concatenate(right))
    balanced = 100 * np.mean([np.mean(of_class) for of_class in right])
    shown = capsys.readouterr().out
    assert f"21 images have a label among the classes: top-1 {top1:.1f} %, balanced accuracy {balanced:.1f} %" in shown
    assert call("predict", classifier, photos) == 0
    assert "have a label" not in capsys.readouterr().out


def test_the_sheet_shows_the_most_and_the_least_certain_of_each_class(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[list[str]] = []

    def watched(thumbnails: list[bytes], of_row: list[str], columns: int) -> Image.Image:
        captions.append(of_row)
        return contact_sheet(thumbnails, of_row, columns)

    monkeypatch.setattr("stepclr.tools.predicted.contact_sheet", watched)
    sheet = tmp_path / "sheet.png"
    assert call("predict", classifier, photos, "--sheet", sheet) == 0
    assert f"{sheet}: " in capsys.readouterr().out
    predictions = classify(classifier, photos)
    counts = np.bincount(predictions.probabilities.argmax(1), minlength=3)
    assert counts.max() > 2 * COLUMNS
    largest = CLASSES[counts.argmax()]
    most, least, *_ = captions
    assert len(most) == len(least) == COLUMNS
    assert all(largest in caption for caption in most + least)
    shares = [float(caption.split(" %")[0]) for caption in most + least]
    assert shares[0] == max(shares)
    assert shares[-1] == min(shares)
    with Image.open(sheet) as image:
        assert image.height > len(captions) * (THUMBNAIL_PX + 2 * LINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("CLASSIFIER 00.png --out p.txt", "out must end in .csv or .parquet or .json, not 'p.txt'"),
        ("CLASSIFIER 00.png --sheet sheet.csv", "--sheet sheet.csv is not an image format"),
        ("CLASSIFIER truncated.jpg", "truncated.jpg: no image can be read; the first, truncated.jpg: "),
        ("CLASSIFIER 00.png nowhere.png", "nowhere.png does not exist"),
        ("CLASSIFIER", "there is no source of images; give one or more"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: str, said: str, classifier: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert call("predict", *words.replace("CLASSIFIER", str(classifier)).split()) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert sorted(here.iterdir()) == before


def test_parquet_without_pyarrow_names_the_extra(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(
        StepclrError, match=r"writing p.parquet needs the package pyarrow: pip install 'stepclr\[search\]'"
    ):
        classify(classifier, photos / "00.png").write(tmp_path / "p.parquet")
