"""No test images: a share of train is held out, the same one wherever it is asked for, and copies stay together."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import call, checksum, untrained_run

import stepclr
from stepclr.data.images import ImageSet
from stepclr.errors import StepclrError
from stepclr.evaluation import overlap
from stepclr.evaluation.holdout import held_out
from stepclr.model.files import load_classifier
from stepclr.tools.notes import holdout_words, notes
from stepclr.tools.scores import stored_scores

CLASSES = ["ant", "bee", "cat"]
COPIES = 6  # of one image of ant: an identical one, and brighter ones
SHARE = 0.25
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: 20 noisy images of each class, COPIES more of one of them, and one without a label."""
    folder = tmp_path_factory.mktemp("labeled")
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    waves = [np.sin(rows), np.sin(columns), np.sin(rows + columns)]
    for i in range(60):
        image = 128 + 30 * waves[i % 3][..., None] + 30 * generator.normal(size=(16, 16, 3))
        images = {f"{i:02}": image}
        if i == 0:
            images |= {f"00 copy {number}": image + 4 * number for number in range(COPIES)}
        for name, pixels in images.items():
            path = folder / CLASSES[i % 3] / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    Image.new("RGB", (16, 16)).save(folder / "loose.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("run"))


def sides(labeled: Path, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Train and test as SHARE and a seed divide the folder, by hand: the copies of image 00 are one group."""
    images = stepclr.open_images(labeled, CLASSES)
    group = [i for i, name in enumerate(images.names) if name.startswith("ant/00")]
    mask = held_out(images.labels, CLASSES, SHARE, seed, [group])
    return images.take(~mask), images.take(mask)


# What the encoder knows already


def noise(folder: Path) -> Path:
    """Class folders of other images."""
    for i in range(12):
        path = folder / CLASSES[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 90).convert("RGB").save(path)
    return folder


def test_scores_of_an_encoder_that_learned_from_labels_say_so(
    labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out images of the source are among them; a run without labels, and images from elsewhere, are as usual."""
    options: dict[str, Any] = {"encoder": "test_resnet", "epochs": 1, "batch_size": 16}
    supcon = stepclr.pretrain(labeled, tmp_path / "supcon", loss="supcon", **options).folder
    assert "kNN is of labels that training learns from; set monitor to other" in capsys.readouterr().err
    simclr = stepclr.pretrain(labeled, tmp_path / "simclr", **options).folder
    assert "kNN is of labels" not in capsys.readouterr().err
    elsewhere = shutil.copytree(labeled, tmp_path / "elsewhere")
    scoring: dict[str, Any] = {"baselines": "", "labels_per_class": 2, "draws": 1}
    fact = {"row": None, "run": str(supcon), "loss": "supcon", "source": str(labeled), "labels": 66}

    known = [fact | {"scored": True}]
    scores = stepclr.evaluate(supcon, labeled, holdout=SHARE, **scoring)
    assert scores.protocol["learned_labels"] == known
    says = f"The encoder has learned from the 66 labels of {labeled} (in {supcon}, by the loss supcon)"
    assert any(note.startswith(says) and "too high" in note for note in notes(scores))
    assert stored_scores(stepclr.Run(supcon)) is not None

    copied = stepclr.evaluate(supcon, noise(tmp_path / "noise"), elsewhere, **scoring)
    assert copied.protocol["learned_labels"] == known  # by their content: the folder is another one
    for path in elsewhere.glob("*/*.png"):
        Image.effect_noise((16, 16), 90).convert("RGB").save(path)
    scores = stepclr.evaluate(supcon, labeled, elsewhere, **scoring)
    assert scores.protocol["learned_labels"] == [fact | {"scored": False}]
    assert not any("too high" in note for note in notes(scores))

    scores = stepclr.evaluate(simclr, labeled, holdout=SHARE, **scoring | {"baselines": supcon})
    assert scores.protocol["learned_labels"] == [fact | {"row": str(supcon), "scored": True}]
    assert any(note.startswith(f"The row {supcon} has learned from the 66 labels") for note in notes(scores))
    scores = stepclr.evaluate(simclr, labeled, holdout=SHARE, **scoring)
    assert scores.protocol["learned_labels"] == []
    assert scores.protocol["seen_unlabeled"] == [{"row": None, "run": str(simclr), "source": str(labeled)}]
    assert any(
        note.startswith("Pretraining of the encoder may have seen the images held out") for note in notes(scores)
    )
    scores = stepclr.evaluate(simclr, labeled, noise(tmp_path / "new"), **scoring)
    assert scores.protocol["seen_unlabeled"] == []
    assert not any("may have seen" in note for note in notes(scores))
    file = supcon / "encoder.safetensors"  # which is in the run
    assert stepclr.evaluate(file, labeled, holdout=SHARE, **scoring).protocol["learned_labels"] == known
    heir = stepclr.pretrain(labeled, tmp_path / "heir", weights=str(supcon), epochs=1, batch_size=16).folder
    assert stepclr.evaluate(heir, labeled, holdout=SHARE, **scoring).protocol["learned_labels"] == known
    tuned = stepclr.finetune(supcon, labeled, holdout=SHARE, epochs=1, out=tmp_path / "c.safetensors")
    assert tuned.protocol["learned_labels"] == known
    options |= {"loss": "distill", "teacher": str(tmp_path / "c.safetensors")}
    student = stepclr.pretrain(labeled, tmp_path / "student", **options)
    scores = stepclr.evaluate(student, labeled, holdout=SHARE, **scoring)
    assert [learned["scored"] for learned in scores.protocol["learned_labels"]] == [None]
    assert any("and so from the labels of that one" in note for note in notes(scores))


@pytest.mark.parametrize(
    ("source", "of_run", "meet"),
    [
        ("/a/photos", "/a/photos", True),
        ("/a/photos/test", "/a/photos", True),
        ("/a/photos", "/a/photos/train", True),
        ("/a/photos/test", "/a/photos/train", False),
        ("stl10:train", "stl10:train+unlabeled", True),
        ("stl10:test", "stl10:train+unlabeled", False),
        ("cifar10:train", "cifar100:train", False),
        ("array", "array", False),
        ("https://a/x.tar", "https://a/x.tar", True),
    ],
)
def test_sources_that_share_images_are_told_from_others(source: str, of_run: str, meet: bool) -> None:
    assert overlap._meet(source, of_run) == overlap._meet(of_run, source) == meet


def test_arrays_are_told_apart_by_their_number(tmp_path: Path) -> None:
    """They have no place; labels held out of the same arrays are known."""
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (count, 16, 16, 3), np.uint8) for count in (40, 30)]
    (x, y), (x_test, y_test) = ((images, np.arange(len(images)) % 2) for images in arrays)
    options: dict[str, Any] = {"encoder": "test_resnet", "epochs": 1, "batch_size": 16, "progress": False}
    run = stepclr.pretrain((x, y), tmp_path / "run", loss="supcon", **options)
    scoring: dict[str, Any] = {"baselines": "", "labels_per_class": 2, "draws": 1}
    apart = stepclr.evaluate(run, (x, y), (x_test, y_test), **scoring)
    held = stepclr.evaluate(run, (x, y), holdout=0.5, **scoring)
    assert [scores.protocol["learned_labels"][0]["scored"] for scores in (apart, held)] == [False, True]


def test_a_table_that_kept_test_images_out_of_training_keeps_them_apart(labeled: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in labeled.glob("*/*.png") if "copy" not in path.name)
    table, other = tmp_path / "labels.csv", tmp_path / "other.csv"  # which holds out others
    for held, file in enumerate((table, other)):
        rows = [f"{path},{path.parent.name},{'test' if i % 4 == held else 'train'}\n" for i, path in enumerate(paths)]
        file.write_text("path,label,split\n" + "".join(rows))
    images = stepclr.open_images(labeled, labels=table)
    run = stepclr.pretrain(
        images, tmp_path / "run", loss="supcon", encoder="test_resnet", epochs=1, batch_size=16, progress=False
    )
    scores = stepclr.evaluate(run, images, baselines="", labels_per_class=2, draws=1)
    assert [learned["scored"] for learned in scores.protocol["learned_labels"]] == [False]
    images = stepclr.open_images(labeled, labels=other)
    scores = stepclr.evaluate(run, images, baselines="", labels_per_class=2, draws=1)
    assert [learned["scored"] for learned in scores.protocol["learned_labels"]] == [True]


def test_other_test_images_that_were_learned_are_known_beside_a_table_with_splits(
    labeled: Path, tmp_path: Path
) -> None:
    """The table says nothing of them: they keep the labels of their folders, all of which the loss has seen."""
    more = shutil.copytree(labeled, tmp_path / "more")
    for i, path in enumerate(sorted(more.rglob("*.png"))):  # other images
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    table = tmp_path / "labels.csv"
    paths = sorted(labeled.glob("*/*.png"))
    rows = [f"{path},{path.parent.name},{'train' if i % 4 else 'test'}\n" for i, path in enumerate(paths)]
    table.write_text("path,label,split\n" + "".join(rows))
    run = stepclr.pretrain(
        stepclr.open_images([labeled, more], labels=table), tmp_path / "run", loss="supcon", encoder="test_resnet",
        epochs=1, batch_size=16, progress=False,
    )  # fmt: skip
    scoring: dict[str, Any] = {"baselines": "", "labels_per_class": 2, "draws": 1}
    scores = stepclr.evaluate(run, stepclr.open_images(labeled, labels=table, split="train"), more, **scoring)
    assert [learned["scored"] for learned in scores.protocol["learned_labels"]] == [True]


# The draw


@pytest.mark.parametrize("share", [0.05, 0.2, 1 / 3, 0.5, 0.9])
def test_a_share_of_each_class_is_held_out(share: float) -> None:
    labels = np.repeat([0, 1, 2], [10, 40, 101])
    mask = held_out(labels, CLASSES, share, 0)
    assert np.bincount(labels[mask]).tolist() == [math.floor(share * n + 0.5) for n in (10, 40, 101)]
    assert (held_out(labels, CLASSES, share, 0) == mask).all()
    assert (held_out(labels, CLASSES, share, 1) != mask).any()


def test_a_group_stays_on_one_side_whatever_classes_it_has() -> None:
    labels = np.arange(60) % 3
    groups = [[0, 3, 6], [1, 2], [4, 7, 10, 13], [30, 31, 32]]
    on_test = set()
    for seed in range(20):
        mask = held_out(labels, CLASSES, SHARE, seed, groups)
        assert all(len(set(mask[group])) == 1 for group in groups)
        assert np.abs(np.bincount(labels[mask]) - 5).max() <= 1  # as near to a share as a group allows
        on_test |= {number for number, group in enumerate(groups) if mask[group[0]]}
    assert on_test == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("counts", "share", "groups", "message"),
    [
        (
            [10, 20],
            0.04,
            [],
            "class 'ant' to score on (labeled: 10); the nearest",
        ),
        ([10, 20], 0.04, [], "works is 0.05"),
        (
            [10, 20],
            0.99,
            [],
            "class 'ant' to train on (labeled: 10); the nearest",
        ),
        ([10, 20], 0.99, [], "works is 0.94"),
        ([20, 1], 0.2, [], "class 'bee' to score on (labeled: 1); no other share works"),
        (
            [20, 6],
            0.2,
            [[20, 21, 22, 23, 24, 25]],
            "'bee' to score on (labeled: 6, 1 without near duplicates); no other",
        ),
        ([20, 8], 0.2, [[20, 21, 22, 23], [24, 25, 26, 27]], "(labeled: 8, 2 without near duplicates); the nearest"),
    ],
)
def test_a_class_without_an_image_on_one_side_is_named_with_the_nearest_share(
    counts: list[int], share: float, groups: list[list[int]], message: str
) -> None:
    labels = np.repeat(np.arange(2), counts)
    with pytest.raises(StepclrError) as error:
        held_out(labels, CLASSES[:2], share, 0, groups)
    text = str(error.value)
    assert text.startswith(f"holdout={share:g} leaves no image of class ")
    assert message in text
    if "works is" in text:
        assert held_out(labels, CLASSES[:2], float(text.split()[-1]), 0, groups).any()


# evaluate


def test_it_is_the_same_as_to_give_the_images_by_hand(run: Path, labeled: Path) -> None:
    options: dict[str, Any] = {"labels_per_class": 3, "draws": 2, "seed": 4, "baselines": "random"}
    scores = stepclr.evaluate(run, labeled, holdout=SHARE, **options)
    train, test = sides(labeled, seed=4)
    by_hand = stepclr.evaluate(run, train, test, **options)
    assert scores.rows == by_hand.rows
    assert scores.protocol["confusion"] == by_hand.protocol["confusion"]
    # What was left out counts for the source.
    source = {"source": str(labeled), "left_out_of_other_classes": 0, "left_out_unreadable": 0}
    assert scores.protocol["train"] == source | {"images": len(train), "left_out_without_label": 1}
    assert scores.protocol["test"] == source | {"images": len(test), "left_out_without_label": 0}
    assert scores.protocol["test_images_in_train"] == by_hand.protocol["test_images_in_train"]


def test_the_protocol_and_the_summary_say_what_was_held_out(run: Path, labeled: Path) -> None:
    scores = stepclr.evaluate(run, labeled, holdout=SHARE, probe="knn", baselines=())
    train, test = sides(labeled)
    counts = [dict(zip(CLASSES, np.bincount(part.labels).tolist(), strict=True)) for part in (train, test)]
    assert scores.protocol["holdout"] == {
        "share": SHARE, "seed": 0, "train": counts[0], "test": counts[1], "groups_kept_together": 1,
        "images_in_groups": 1 + COPIES, "names_checksum": test.names_checksum(),
    }  # fmt: skip
    assert holdout_words(scores) == (
        f"Held out: 25 % of each class (seed 0), {len(test)} images to score on "
        f"(each is {100 / len(test):.1f} points); {len(train)} are left to learn from. "
        f"Versions of one image are on one side: 1 group of {1 + COPIES} images."
    )


def test_the_number_of_labels_is_that_of_the_part_that_is_left(run: Path, labeled: Path) -> None:
    with pytest.raises(StepclrError, match="'bee' of train has 15 labels; ask for at most 15"):
        stepclr.evaluate(run, labeled, labels_per_class=16, holdout=SHARE)


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.2, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("command", [stepclr.evaluate, stepclr.finetune])
def test_what_is_no_share_is_refused(command: Any, holdout: float, run: Path, labeled: Path) -> None:
    with pytest.raises(StepclrError, match=r"holdout must be a share between 0 and 1, such as 0\.2, not"):
        command(run, labeled, holdout=holdout)


# finetune


def test_the_classifier_is_scored_on_what_it_was_not_trained_on(run: Path, labeled: Path, tmp_path: Path) -> None:
    train, test = sides(labeled)
    out = tmp_path / "held-out.safetensors"
    scores = stepclr.finetune(run, labeled, holdout=SHARE, out=out, **SHORT)
    predicted = stepclr.predict(out, test)
    assert predicted.classes == CLASSES
    top1 = float((predicted.probabilities.argmax(1) == test.labels).mean())
    assert scores.protocol["classifier"]["top1"] == top1 == scores.rows[0].mean

    by_hand = tmp_path / "by-hand.safetensors"
    other = stepclr.finetune(run, train, replace(test, source="held out"), out=by_hand, **SHORT)
    assert other.rows == scores.rows
    assert checksum(load_classifier(out)) == checksum(load_classifier(by_hand))


def test_the_command_line_says_the_score_of_the_file(
    run: Path, labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "photos.safetensors"
    words = ["--train", labeled, "--holdout", SHARE, "--seed", "2"]
    assert call("finetune", run, *words, "--labels-per-class", "2,5", "--epochs", "1", "--out", out) == 0
    shown = capsys.readouterr().out
    stored = json.loads((run / "finetune.json").read_text())["protocol"]
    assert f"photos.safetensors: top-1 {100 * stored['classifier']['top1']:.1f} %" in shown
    assert "top-1 on the images held out" in shown
    assert "Held out: 25 % of each class (seed 2), 17 images to score on" in shown
    # evaluate holds out the same images.
    assert call("evaluate", run, *words, "--probe", "knn", "--baselines", "none") == 0
    assert "Held out: 25 % of each class (seed 2), 17 images to score on" in capsys.readouterr().out
    assert json.loads((run / "evaluation.json").read_text())["protocol"]["holdout"] == stored["holdout"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate RUN --train LABELED", "give test, or --holdout 0.2 to hold out a fifth of train"),
        (
            "evaluate RUN --train LABELED --test LABELED --holdout 0.2",
            "test and --holdout 0.2 both say what",
        ),
        (
            "finetune RUN --train LABELED --test LABELED --holdout 0.2",
            "test and --holdout 0.2 both say what",
        ),
        ("finetune RUN --train LABELED --holdout 0.01", "--holdout 0.01 leaves no image of class 'ant' to score on"),
        ("evaluate RUN --train LABELED --holdout 1.2", "holdout must be a share between 0 and 1, such as 0.2, not 1.2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: str, said: str, run: Path, labeled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words.replace("RUN", str(run)).replace("LABELED", str(labeled)).split()) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
