"""Which labels a source has: said by every command, and refused by all alike where they are not classes."""

import io
import unicodedata
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stepclr
from stepclr.cli import main
from stepclr.data.labels import describe_classes, heading, split_folders
from stepclr.errors import StepclrError
from stepclr.tools.doctor.findings import class_findings, leakage_findings
from stepclr.tools.doctor.scan import scan

TINY: dict[str, Any] = {"encoder": "test_resnet", "stem": "small-stride2", "epochs": 1, "batch_size": 4, "head": "8-4"}
WORDS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def images_in(root: Path, *paths: str) -> Path:
    """Noise, of which no two are alike."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(zlib.crc32(f"{root.name}/{path}".encode())).integers(
            0, 256, (16, 16, 3), np.uint8
        )
        Image.fromarray(noise).save(root / path)
    return root


def numbered(*folders: str, n: int = 3) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(n)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("sources")
    return {
        "splits": images_in(here / "root", *numbered("train/cat", "train/dog", "test/cat", "test/dog")),
        "one class": images_in(here / "wrap", *numbered("photos")),
        "one folder around all": images_in(here / "outer", *numbered("all/cat", "all/dog")),
        "no labels": images_in(here / "loose", "0.png", "1.png", "2.png"),
    }


@pytest.fixture(scope="module")
def run(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> stepclr.Run:
    """Pretrained without labels on a folder of splits."""
    return stepclr.pretrain(sources["splits"], tmp_path_factory.mktemp("runs") / "run", progress=False, **TINY)


def commanded(*words: object) -> None:
    """A command that fails by bad input: its one line as an error."""
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 2
    raise StepclrError(said.getvalue().removesuffix("\n").split("\nstepclr: ")[-1])


def used(how: str, run: stepclr.Run, source: Path, out: Path) -> object:
    """One use of the labels of a source."""
    losses = {"supcon": {"loss": "supcon"}, "cross-entropy": {"loss": "cross-entropy"}}
    settings: dict[str, Any] = {**losses, "balanced": {"balanced": True}, "second stage": {"linear_epochs": 1}}
    if how in settings:
        return stepclr.pretrain(source, out, **TINY, **settings[how])
    uses: dict[str, Callable[[], object]] = {
        "monitor": lambda: stepclr.pretrain("sample:train", out, limit=20, monitor=str(source), **TINY),
        "doctor": lambda: stepclr.doctor(source, stepclr.PretrainConfig(loss="supcon", **TINY)),
        "evaluate": lambda: stepclr.evaluate(run, source, source),
        "finetune": lambda: stepclr.finetune(run, source, out=out / "c.safetensors"),
        "scikit-learn": lambda: stepclr.SimCLRTransformer(None, options={"loss": "supcon"}).fit(source),
        "stepclr pretrain": lambda: commanded("pretrain", source, "--out", out, "--loss", "supcon", *WORDS),
        "stepclr doctor": lambda: commanded("doctor", source, "--loss", "supcon", *WORDS),
        "stepclr evaluate": lambda: commanded("evaluate", run.folder, "--train", source, "--test", source),
        "stepclr finetune": lambda: commanded(
            "finetune", run.folder, "--train", source, "--out", out / "c.safetensors"
        ),
    }
    return uses[how]()


USES = ["supcon", "cross-entropy", "balanced", "second stage", "monitor", "doctor", "evaluate", "finetune"]
USES += ["scikit-learn", "stepclr pretrain", "stepclr doctor", "stepclr evaluate", "stepclr finetune"]
REASONS = {
    "splits": "root has the classes 'train', 'test', which name splits of a data set, not classes; give {source}/train",
    "one class": "wrap has one class, 'photos'; there must be two or more to tell apart",
    "one folder around all": "tell apart; if its folders are the classes, give {source}/all",
    "no labels": "loose has no",  # labels; or "none", where the loss needs some
}


@pytest.mark.parametrize("kind", REASONS)
@pytest.mark.parametrize("use", USES)
def test_labels_that_are_no_classes_are_refused_wherever_they_are_used(
    use: str, kind: str, run: stepclr.Run, sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(StepclrError) as error:
        used(use, run, sources[kind], tmp_path / "out")
    assert REASONS[kind].format(source=sources[kind]) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_where_no_label_is_used_splits_are_a_warning_and_no_score(
    run: stepclr.Run, sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not any("knn" in line for line in run.metrics)  # of train against test
    warning = f"warning: {sources['splits']} has the classes 'train', 'test', which name splits of a data set"
    for words in (
        ["embed", run.folder, sources["splits"], "--out", tmp_path / "h.npz"],
        ["pack", sources["splits"], "--out", tmp_path / "packed"],
        ["pretrain", sources["splits"], "--out", run.folder, "--resume"],
    ):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        said = capsys.readouterr().err
        assert not end.value.code, said
        assert f"{sources['splits']}: 12 images, 2 classes: test 6, train 6\n{warning}" in said
    (found, *_) = class_findings(stepclr.open_images(sources["splits"]))
    assert (found.name, found.severity, found.do) == ("split-folders", "warning", warning.removeprefix("warning: ")
                                                       + f", not classes; give {sources['splits']}/train")  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "meant"),
    [
        ("cat dog", True),
        ("train bus car", True),  # vehicles
        ("train_station tower", True),
        ("train test", False),
        ("train", False),
        ("Training Validation masks", False),
        ("train2017 val2017", False),
        ("seg_train seg_test seg_pred", False),
        ("test_set training_set", False),
        ("test val", False),
    ],
)
def test_which_names_are_those_of_splits(classes: str, meant: bool, tmp_path: Path) -> None:
    images = stepclr.open_images(images_in(tmp_path, *numbered(*classes.split(), n=1)))
    assert (split_folders(images) == "") == meant
    assert split_folders(images.keep(images.classes)) == ""  # chosen by name


def test_classes_in_words(tmp_path: Path) -> None:
    images = stepclr.open_images(images_in(tmp_path, *numbered("cat"), *numbered("dog", n=5), "loose.png"))
    assert heading(images) == f"{tmp_path}: 9 images, 2 classes: dog 5, cat 3; 1 image without a label"
    assert describe_classes({}, 5) == "no labels"
    many = describe_classes({f"c{i}": 2000 - i for i in range(1000)}, 0)
    assert many.startswith("1,000 classes: c0 2,000, c1 1,999, ")
    assert many.endswith("c9 1,991, ..., c998 1,002, c999 1,001")


def test_a_set_that_lacks_classes_is_used_for_the_others(tmp_path: Path) -> None:
    train = stepclr.open_images(images_in(tmp_path / "train", *numbered("ant", "bee", "cat")))
    test = images_in(tmp_path / "test", *numbered("cat", "dog"))
    found = {f.name: f.examples for f in leakage_findings(scan(train), scan(stepclr.open_images(test)))}
    assert (found["test-classes"], found["test-lacks-classes"]) == (["dog"], ["ant", "bee"])
    # Of the classes that were chosen for training, the monitor has one.
    with pytest.raises(StepclrError, match="test has one class, 'cat'"):
        stepclr.pretrain(train, tmp_path / "run", classes="bee,cat", monitor=str(test), **TINY)
    with pytest.raises(StepclrError, match="test has no image of bee"):
        stepclr.doctor(train.keep("bee"), stepclr.PretrainConfig(**TINY), test)


def test_a_class_is_the_same_in_both_ways_to_write_an_accent(run: stepclr.Run, tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    train = images_in(tmp_path / "a", *numbered(composed, "tea", n=6))
    test = images_in(tmp_path / "b", *numbered(decomposed, "tea"))
    scores = stepclr.evaluate(run, train, test, probe="knn", baselines=())
    assert scores.protocol["classes"] == [composed, "tea"]
    assert scores.protocol["classes_not_in_test"] == []
    both = stepclr.open_images(images_in(test, f"{composed}/x.png"))
    assert sorted(both.classes) == [composed, "tea"]
    assert len(stepclr.open_images(both, classes=decomposed)) == len(both.keep(composed)) == 4


def test_classes_with_commas_are_chosen_on_the_command_line(
    run: stepclr.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = images_in(tmp_path / "birds", *numbered("crane, bird", "crane, machine", "dog", "crane"))
    for given, chosen in {
        "crane, bird": ["crane, bird"],
        "dog,crane, machine": ["dog", "crane, machine"],
        "crane, machine , crane,dog": ["crane, machine", "crane", "dog"],
    }.items():
        assert stepclr.open_images(root, classes=given).classes == chosen
        with pytest.raises(SystemExit) as end:
            main(["embed", str(run.folder), str(root), "--classes", given, "--out", str(tmp_path / "h.npz")])
        assert not end.value.code
        assert f"{3 * len(chosen)} images, {len(chosen)} class" in capsys.readouterr().err
    with pytest.raises(StepclrError, match=r"unknown class of .* 'crane, brid'"):
        stepclr.open_images(root, classes=["crane, brid"])
