"""Labels of tables: the same set however they are given, and the same labels in every command."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small import call, same, succeed, untrained_run

import stepclr
from stepclr.cli import main
from stepclr.data.labels import heading, source_lines
from stepclr.data.shards.packing import pack
from stepclr.data.sources import open_train_test
from stepclr.errors import StepclrError
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.tools.doctor.findings import class_findings
from stepclr.tools.search.index import open_index

TINY: dict[str, Any] = {"encoder": "test_resnet", "stem": "small-stride2", "epochs": 2, "batch_size": 8, "head": "8-4"}
WORDS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
N = 24


def label_of(i: int) -> str:
    return ("cat", "dog")[i % 2]


def split_of(i: int) -> str:
    return "test" if i % 3 == 0 else "train"


def columns(n: int = 18) -> dict[str, list[Any]]:
    """The labels of the first n of N images."""
    return {
        "path": [f"{i:02d}.png" for i in range(n)],
        "label": [label_of(i) for i in range(n)],
        "split": [split_of(i) for i in range(n)],
    }


def written(path: Path, table: dict[str, list[Any]], mark: str = ",") -> Path:
    lines = [mark.join(table), *(mark.join(map(str, row)) for row in zip(*table.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """N loose images and, beside the folder, tables of the labels of 18."""
    folder = tmp_path_factory.mktemp("labeled") / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), np.uint8)
    for i, pixels in enumerate(noise):
        pixels[:, :, i % 2] = 0
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    written(folder.parent / "labels.csv", {name: columns()[name] for name in ("path", "label")})
    written(folder.parent / "splits.csv", columns())
    return folder


class Series:
    """A column, of which pandas makes a list by `tolist`, polars by `to_list`."""

    def __init__(self, values: list[Any], listed: str) -> None:
        setattr(self, listed, lambda: values)


class Frame(dict[str, Any]):
    """What is used of a data frame."""

    @property
    def columns(self) -> list[str]:
        return list(self)


def frame(listed: str) -> Frame:
    return Frame({name: Series(values, listed) for name, values in columns().items()})


def given(folder: Path) -> dict[str, object]:
    """The same labels in every form, by the name of that form."""
    photos, table = folder / "photos", columns()
    forms = folder / "forms"
    forms.mkdir(exist_ok=True)
    halves = [{name: values[part] for name, values in table.items()} for part in (slice(9), slice(9, None))]
    pq.write_table(pa.table(table), forms / "a.parquet")
    absolute = {**table, "path": [str(photos / name) for name in table["path"]]}
    beside = {**table, "path": [f"photos/{name}" for name in table["path"]]}
    return {
        "csv": written(forms / "a.csv", table),
        "a string": str(written(forms / "a.csv", table)),
        "tsv": written(forms / "a.tsv", table, "\t"),
        "parquet": forms / "a.parquet",
        "several files": [written(forms / f"{i}.csv", half) for i, half in enumerate(halves)],
        "other names": written(forms / "b.csv", {"Class": table["label"], "File Name": table["path"]}),
        "absolute paths": written(forms / "c.csv", absolute),
        "relative to the table": written(folder / "d.csv", beside),
        "a mapping": dict(zip(table["path"], table["label"], strict=True)),
        "a mapping of Path": {photos / name: label for name, label in zip(table["path"], table["label"], strict=True)},
        "bytes": pa.table({name: [str(value).encode() for value in values] for name, values in table.items()}),
        "pyarrow": pa.table(table),
        "like pandas": frame("tolist"),
        "like polars": frame("to_list"),
    }


def test_every_form_of_the_same_labels_gives_the_same_set(photos: Path) -> None:
    for form, labels in given(photos.parent).items():
        images = stepclr.open_images(photos, labels=labels)
        assert images.classes == ["cat", "dog"], form
        assert images.labels.tolist() == [i % 2 if i < 18 else -1 for i in range(N)], form
        assert len(stepclr.open_images(photos, labels=labels, classes="dog", limit=4)) == 4, form


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            {"00.png": "cat", "x.png": "dog", "y.png": "dog"},
            "2 of 3 paths are not in {photos}, such as 'x.png', 'y.png'",
        ),
        ({"00.png": "cat", "./00.png": "dog"}, "1 image has two labels, such as './00.png': 'cat' and 'dog'"),
        ("missing.csv", "missing.csv cannot be read: No such file"),
        ([], "labels must be the path of a table, several paths, a mapping from paths to labels or a data frame, not"),
        ([0, 1], "labels must be the path of a table"),
        (7, "or a data frame, not int"),
        ({0: "cat"}, "labels: the keys of the mapping must be paths, not 0"),
        (
            pa.table([["00.png"], ["cat"], ["dog"]], names=["path", "label", "label"]),
            "the data frame: the columns label and label say the same; keep one of them",
        ),
        (pa.table({"name": ["00.png"], "label": ["cat"]}), "the data frame must have a header with the columns path"),
        (pa.table({"path": ["00.png"], "label": [["cat", "dog"]]}), "['cat', 'dog'] cannot be a label or a split"),
    ],
)
def test_labels_that_cannot_be_used_are_one_line(labels: object, said: str, photos: Path) -> None:
    with pytest.raises(StepclrError) as error:
        stepclr.open_images(photos, labels=labels)
    assert said.format(photos=photos) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_image_may_be_in_a_table_by_any_of_its_paths(photos: Path, tmp_path: Path) -> None:
    """It is left out of the images, and the ledger counts it."""
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "clip.mp4").touch()
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    other = shutil.copytree(photos, tmp_path / "other")
    for name in ("clip.mp4", "photos/clip.mp4", "gone.png", "photos/gone.png", str(folder / "gone.png")):
        table = written(tmp_path / "labels.csv", {"path": ["photos/00.png", name], "label": ["cat", "dog"]})
        images = stepclr.open_images(folder, labels=table)
        assert images.classes == ["cat"]
        assert stepclr.open_images([folder, other], labels=table).class_name(0) == "cat"
    table = written(tmp_path / "labels.csv", {"path": ["photos/00.png", "photos/no.mp4"], "label": ["cat", "dog"]})
    with pytest.raises(StepclrError, match="1 of 2 paths are not in"):
        stepclr.open_images(folder, labels=table)


def test_each_of_two_sets_says_how_many_of_its_images_a_table_labels(photos: Path, tmp_path: Path) -> None:
    train, test = (shutil.copytree(photos, tmp_path / name) for name in ("train", "test"))
    names = [f"train/{i:02d}.png" for i in range(4)] + [f"test/{i:02d}.png" for i in range(3)]
    table = written(tmp_path / "labels.csv", {"path": names, "label": ["cat"] * 7})
    for images, n in zip(open_train_test(train, test, table), (4, 3), strict=True):
        assert images is not None
        assert source_lines(images) == [f"labels: {table} gives a label to {n} images"]


def test_values_of_any_type_are_labels(photos: Path) -> None:
    paths = ["00.png", "01.png", "02.png", "03.png"]
    for values, classes in (
        ([3, 10, None, 3], ["10", "3"]),
        ([3.0, 10.0, float("nan"), 3.0], ["10", "3"]),
        ([True, False, None, True], ["False", "True"]),
        ([" cat", "caf\u0065\u0301", "", "cat"], ["caf\u00e9", "cat"]),
    ):
        images = stepclr.open_images(photos, labels=Frame(path=Series(paths, "tolist"), label=Series(values, "tolist")))
        assert images.classes == classes
        assert images.labels.tolist()[:5] == [1, 0, -1, 1, -1]


def test_a_table_replaces_the_names_of_folders_and_says_so(photos: Path, tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / "box" / f"shelf{i % 3}").mkdir(parents=True, exist_ok=True)
        content = (photos / f"{i:02d}.png").read_bytes()
        (tmp_path / "box" / f"shelf{i % 3}" / f"{i}.png").write_bytes(content)
    table = written(tmp_path / "l.csv", {"path": ["shelf0/0.png", "shelf1/1.png"], "label": ["cat", "dog"]})
    images = stepclr.open_images(tmp_path / "box", labels=table)
    assert (images.classes, (images.labels >= 0).sum()) == (["cat", "dog"], 2)
    assert heading(images).split("\n") == [
        f"{tmp_path / 'box'}: 6 images, 2 classes: cat 1, dog 1; 4 images without a label",
        f"labels: {table} gives a label to 2 images; the names of folders do not count",
    ]
    # The same table for a zip around the folder, and for shards, whose names are the folder's.
    zipped = Path(shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path, "box"))
    pack(stepclr.open_images(tmp_path / "box"), tmp_path / "shards", per_shard=4)
    for source in (zipped, tmp_path / "shards"):
        assert sorted(stepclr.open_images(source, labels=table).labels.tolist()) == [-1] * 4 + [0, 1]
    # What is there and cannot be read is no wrong path.
    (tmp_path / "box" / "shelf0" / "raw.dng").write_bytes(b"")
    written(table, {"path": ["shelf0/0.png", "shelf0/raw.dng"], "label": ["cat", "dog"]})
    assert stepclr.open_images(tmp_path / "box", labels=table).classes == ["cat"]


def test_the_column_split_makes_train_and_test(photos: Path) -> None:
    table = photos.parent / "splits.csv"
    train, test = (stepclr.open_images(photos, labels=table, split=split) for split in ("train", "test"))
    assert test.names == [f"{i:02d}.png" for i in range(0, 18, 3)]
    # What no row holds out may be learned from, with a label or without.
    assert sorted([*train.names, *test.names]) == [f"{i:02d}.png" for i in range(N)]
    assert (train.labels >= 0).sum() == 12
    assert stepclr.open_images(photos, labels=table, split="validation").names == test.names
    for both in (photos, str(photos), [photos], [str(photos)]):  # the same images twice
        assert [len(part or []) for part in open_train_test(both, both, table)] == [len(train), len(test)]
    for labels, split, said in (
        (table, "dev", "unknown split 'dev'"),
        (photos.parent / "labels.csv", "test", "split='test' needs labels that have a column split"),
        (None, "test", "split='test' needs labels"),
    ):
        with pytest.raises(StepclrError, match=said):
            stepclr.open_images(photos, labels=labels, split=split)


def test_one_table_serves_a_train_and_a_test_folder(photos: Path, tmp_path: Path) -> None:
    for folder, part in (("train", range(12)), ("test", range(12, 18))):
        (tmp_path / folder).mkdir()
        for i in part:
            (tmp_path / folder / f"{i:02d}.png").write_bytes((photos / f"{i:02d}.png").read_bytes())
    train, test = tmp_path / "train", tmp_path / "test"
    table = photos.parent / "labels.csv"
    sets = open_train_test(train, test, table)
    assert [len(part or []) for part in sets] == [12, 6]
    assert all((part.labels >= 0).all() for part in sets if part)
    # A folder that the table does not name keeps its own labels.
    (tmp_path / "folders" / "dog").mkdir(parents=True)
    (tmp_path / "folders" / "dog" / "x.png").write_bytes((photos / "19.png").read_bytes())
    _, folders = open_train_test(photos, tmp_path / "folders", table)
    assert folders is not None
    assert (folders.classes, folders.labeling) == (["dog"], None)
    # Where both have an image of a name, only a path that says which one will do.
    (test / "00.png").write_bytes((photos / "20.png").read_bytes())
    with pytest.raises(StepclrError, match=r"has several images that could be '00\.png'"):
        open_train_test(train, test, table)
    beside = written(tmp_path / "l.csv", {"path": ["train/00.png", "test/00.png"], "label": ["cat", "dog"]})
    learned, scored = open_train_test(train, test, beside)
    assert scored is not None
    assert [part.class_name(part.names.index("00.png")) for part in (learned, scored)] == ["cat", "dog"]


@pytest.fixture(scope="module")
def run(photos: Path) -> stepclr.Run:
    """Pretrained with SupCon on the labels of a table."""
    out, table = photos.parent / "run", photos.parent / "splits.csv"
    succeed("pretrain", photos, "--labels", table, "--loss", "supcon", "--out", out, *WORDS)
    return stepclr.Run(out)


def test_a_run_keeps_its_labels(run: stepclr.Run, photos: Path, tmp_path: Path) -> None:
    config = run.config
    assert (config.images, config.labeled, config.split) == (18, 12, "train")
    assert config.labels == [str(photos.parent / "splits.csv")]
    images = run.images()
    assert (len(images), (images.labels >= 0).sum(), images.classes) == (18, 12, ["cat", "dog"])
    assert any("knn" in line for line in run.metrics)
    assert stepclr.report(run).exists()

    # A run that was interrupted ends with the same bits, with or without the tables, even if those have changed.
    moved = Path(shutil.copy(photos.parent / "splits.csv", tmp_path / "moved.csv"))
    changed = written(tmp_path / "changed.csv", {**columns(), "label": ["cat", "dog", "dog", "dog", "dog", "cat"] * 3})
    for number, labels in enumerate((None, moved)):
        again = stepclr.Run(shutil.copytree(run.folder, tmp_path / f"again{number}"))
        checkpoints(again.folder / "checkpoint")[-1].unlink()
        (again.folder / "encoder.safetensors").unlink()
        with pytest.raises(StepclrError, match="was started with other labels; leave labels out to resume"):
            stepclr.pretrain(stepclr.open_images(photos, labels=changed), again, resume=True, progress=False)
        stepclr.pretrain(stepclr.open_images(photos, labels=labels), again, resume=True, progress=False)
        assert same(again, run)


def test_every_command_takes_labels(
    run: stepclr.Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, splits = photos.parent / "labels.csv", photos.parent / "splits.csv"
    succeed("evaluate", run.folder, "--train", photos, "--labels", splits, "--probe", "knn", "--baselines", "none")
    protocol = json.loads((run.folder / "evaluation.json").read_text())["protocol"]
    assert [protocol[part]["images"] for part in ("train", "test")] == [12, 6]
    assert protocol["train"]["left_out_without_label"] == 6
    out = tmp_path / "c.safetensors"
    succeed("finetune", run.folder, "--train", photos, "--labels", splits, "--epochs", 1, "--out", out)
    assert json.loads((run.folder / "finetune.json").read_text())["protocol"]["test"]["images"] == 6
    succeed("embed", run.folder, photos, "--labels", labels, "--out", tmp_path / "h.npz")
    assert (np.load(tmp_path / "h.npz")["labels"] >= 0).sum() == 18
    succeed("embed", run.folder, photos, "--labels", labels, "--out", tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert [index.class_name(i) for i in range(N)] == [label_of(i) if i < 18 else None for i in range(N)]
    succeed("pack", photos, "--labels", labels, "--out", tmp_path / "shards")
    shards = stepclr.open_images(tmp_path / "shards")
    assert (shards.classes, shards.labels.tolist()[17:19]) == (["cat", "dog"], [1, -1])
    said = capsys.readouterr().err
    assert said.count(f"labels: {labels} gives a label to 18 images") == 3
    few = written(tmp_path / "few.csv", {"path": ["00.png", "01.png"], "label": ["cat", "dog"]})
    for words in (
        ["evaluate", run.folder, "--train", photos, "--labels", labels],
        ["pack", photos, "--labels", few, "--out", tmp_path / "shards"],
    ):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert end.value.code == 2
    said = capsys.readouterr().err
    assert "there is nothing to score on" in said
    assert "was packed from other images or with other settings: labels was" in said


@pytest.mark.parametrize("command", ["evaluate", "finetune", "doctor"])
def test_a_test_set_that_is_train_itself_is_named(
    command: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a column split, no image of it is for testing."""
    labels = written(tmp_path / "few.csv", {"path": ["00.png", "01.png"], "label": ["cat", "dog"]})
    run = [] if command == "doctor" else [untrained_run(tmp_path / "run"), "--train"]
    assert call(command, *run, photos, "--test", photos, "--labels", labels) == 2
    assert f"test is {photos}, as train is, and no column split" in capsys.readouterr().err


def test_doctor_reports_on_the_labels(photos: Path, tmp_path: Path) -> None:
    table = columns()
    table["path"][0] = "gone.png"
    images, test = open_train_test(photos, None, written(tmp_path / "l.csv", table), missing="list")
    (found, *_) = class_findings(images)
    assert (found.name, found.severity) == ("label-paths", "error")
    assert "1 of 18 paths are not in" in found.says
    assert test is not None
    assert len(test) == 5
