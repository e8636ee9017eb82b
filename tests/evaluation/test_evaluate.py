"""The protocol of step 7: what is read when, what stays as it was, what is written, what is refused."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small import checksum, run_config, untrained_run

import stepclr
from stepclr.data import decode
from stepclr.data.copies import Fingerprints, fingerprints
from stepclr.data.images import ImageSet
from stepclr.data.sources import open_images
from stepclr.device import software
from stepclr.errors import StepclrError
from stepclr.evaluation import api, methods, overlap, prepare
from stepclr.evaluation.finetune import FinetuneSettings
from stepclr.evaluation.results import Fit, Scores
from stepclr.evaluation.splits import label_splits
from stepclr.evaluation.work import Work, expected_sizes
from stepclr.metrics import weighted_knn
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.model.files import load_encoder, state_checksum
from stepclr.pretraining.classifier import Supervised, train_classifier
from stepclr.threads import Progress
from stepclr.tools.label_chart import label_curves
from stepclr.tools.scores import score_table

pytestmark = pytest.mark.usefixtures("few_strengths")
CLASSES = ["ant", "bee", "cat"]
Settings = dict[str, Any]


def striped(n: int, seed: int, classes: int = 3) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 16, 16, 3] whose classes differ in the direction of faint stripes under noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    rows, columns = np.mgrid[:16, :16]
    waves = np.stack([np.sin(rows), np.sin(columns), np.sin(rows + columns)])[labels]
    images = 128 + 30 * waves[..., None] + 40 * generator.normal(size=(n, 16, 16, 3))
    return images.clip(0, 255).astype(np.uint8), labels


def named(n: int, seed: int, classes: int = 3) -> ImageSet:
    return replace(open_images(striped(n, seed, classes)), classes=CLASSES[:classes], source=f"pile {seed}")


@pytest.fixture
def train() -> ImageSet:
    return named(30, seed=1)


@pytest.fixture
def test() -> ImageSet:
    return named(24, seed=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return untrained_run(tmp_path / "run")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[dict[Any, list[Fit]]]:
    """Every set of predictions that is scored."""
    seen: list[dict[Any, list[Fit]]] = []
    predict = api._predict

    def spy(*arguments: Any) -> tuple[dict[Any, list[Fit]], Any]:
        predictions, methods = predict(*arguments)
        seen.append(predictions)
        return predictions, methods

    monkeypatch.setattr(api, "_predict", spy)
    return seen


def one_line(error: pytest.ExceptionInfo[StepclrError]) -> bool:
    return "\n" not in str(error.value)


def test_the_table_has_a_row_for_every_method_and_budget(run: Path, train: ImageSet, test: ImageSet) -> None:
    scores = stepclr.evaluate(
        run,
        train,
        test,
        labels_per_class=(2, "all"),
        draws=3,
        baselines=("scratch", "random", "pixels"),
        scratch_steps=2,
    )
    assert set(scores.to_dict()) == {"rows", "protocol"}
    assert Scores.from_dict(scores.to_dict()) == scores
    assert [(row.method, row.labels_per_class, len(row.values)) for row in scores.rows] == [
        ("pixels", 2, 3), ("pixels", "all", 1), ("random", 2, 3), ("random", "all", 1), ("scratch", 2, 3),
        ("scratch", "all", 1), ("simclr", 2, 3), ("simclr", "all", 1), ("knn", 2, 3), ("knn", "all", 1),
    ]  # fmt: skip
    for row, stored in zip(scores.rows, scores.to_dict()["rows"], strict=True):
        assert list(stored) == [
            "method", "labels_per_class", "mean", "std", "values",
            "labels", "balanced_accuracy", "macro_f1", "per_class",
        ]  # fmt: skip
        assert stored["labels"] == (6 if row.labels_per_class == 2 else 30)
        assert [of_class["images"] for of_class in stored["per_class"].values()] == [8, 8, 8]
        assert row.balanced_accuracy
        assert row.balanced_accuracy.values == pytest.approx(row.values)  # test is balanced
        assert all(0 <= value <= 1 for value in row.values)
        assert row.mean == pytest.approx(sum(row.values) / len(row.values))
        if len(row.values) == 1:
            assert row.std is None
        else:
            squares = sum((value - row.mean) ** 2 for value in row.values)
            assert row.std == pytest.approx((squares / (len(row.values) - 1)) ** 0.5)


def test_the_result_is_evaluation_json_of_the_run(run: Path, train: ImageSet, test: ImageSet) -> None:
    scores = stepclr.evaluate(run, train, test, "1,all", draws=2, baselines=())
    assert json.loads((run / "evaluation.json").read_text()) == scores.to_dict()
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("use", [stepclr.evaluate, stepclr.finetune])
def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    use: Any, run: Path, train: ImageSet, test: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the classifier goes elsewhere: the scores are for the run's own folder."""
    monkeypatch.setattr(os, "access", lambda path, _: path != run)  # root may write anywhere
    said: list[str] = []
    options = {"out": tmp_path / "c.safetensors"} if use is stepclr.finetune else {}
    with pytest.raises(StepclrError, match=f"{run} cannot be written"):
        use(run, train, test, announce=said.append, **options)
    assert said == []
    assert list(tmp_path.iterdir()) == [run]


def test_an_encoder_file_is_scored_too_and_nothing_written(run: Path, train: ImageSet, test: ImageSet) -> None:
    scores = stepclr.evaluate(run / "encoder.safetensors", train, test, baselines=())
    assert scores.rows[0].mean > 1 / 3
    assert [path.name for path in run.iterdir()] == ["encoder.safetensors"]


def test_the_same_call_gives_the_same_scores_and_another_seed_others(
    run: Path, train: ImageSet, test: ImageSet, quick: list[dict[Any, list[Fit]]]
) -> None:
    settings: Settings = {"labels_per_class": 4, "draws": 2, "baselines": ("random", "scratch"), "scratch_steps": 3}
    generator = torch.random.get_rng_state()
    first = stepclr.evaluate(run, train, test, **settings)
    torch.manual_seed(99)
    assert stepclr.evaluate(run, train, test, **settings) == first
    stepclr.evaluate(run, train, test, seed=1, **settings)
    for method in ("random", "scratch", "simclr"):
        a, b, c = (predictions[method, 4] for predictions in quick)
        assert all((x.predicted == y.predicted).all() for x, y in zip(a, b, strict=True))
        assert any((x.predicted != y.predicted).any() for x, y in zip(a, c, strict=True))
        assert (a[0].predicted != a[1].predicted).any()
    torch.random.set_rng_state(generator)


def test_torch_s_generator_is_left_alone(run: Path, train: ImageSet, test: ImageSet) -> None:
    before = torch.random.get_rng_state()
    stepclr.evaluate(run, train, test, 2, draws=1, baselines=("random", "scratch"), scratch_steps=2)
    after = torch.random.get_rng_state()
    # Loading an encoder initializes one first, which draws; the baselines must not.
    torch.random.set_rng_state(before)
    load_encoder(run)
    assert torch.equal(torch.random.get_rng_state(), after)


def test_knn_is_the_signal_with_the_draw_and_with_all_of_train(run: Path, train: ImageSet, test: ImageSet) -> None:
    scores = stepclr.evaluate(run, train, test, 2, draws=2, probe="knn", baselines=())
    h, h_test = (represent(load_encoder(run), images)[0] for images in (train, test))
    labels = torch.from_numpy(train.labels)
    banks = [split.indices for split in label_splits(train.labels, CLASSES, [2], 2, 0)]
    values = [
        float((weighted_knn(h[bank], labels[bank], h_test, 20, 0.1).numpy() == test.labels).mean())
        for bank in [*banks, np.arange(len(train))]
    ]
    assert [(row.method, row.labels_per_class) for row in scores.rows] == [("knn", 2), ("knn", "all")]
    assert [row.values for row in scores.rows] == [values[:2], values[2:]]
    assert scores.protocol["methods"]["knn"]["k"] == {"2": [6, 6], "all": [20]}


def test_knn_takes_its_k_and_temperature(run: Path, train: ImageSet, test: ImageSet) -> None:
    scores = stepclr.evaluate(run, train, test, probe="knn", baselines=(), knn_k=3, knn_temperature=0.02)
    h, h_test = (represent(load_encoder(run), images)[0] for images in (train, test))
    expected = weighted_knn(h, torch.from_numpy(train.labels), h_test, 3, 0.02).numpy() == test.labels
    assert scores.rows[0].values == [expected.mean()]
    told = scores.protocol["methods"]["knn"]
    assert (told["k"], told["T"]) == ({"all": [3]}, 0.02)


def test_linear_evaluation_by_sgd_is_that_of_the_paper(
    run: Path, train: ImageSet, test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """App. B.6: 90 epochs of crops and flips at rate 0.1 B / 256, no decay, and only the linear layer learns."""
    linear_layers: list[str] = []

    def watched(classifier: Classifier, images: ImageSet, settings: Supervised, seed: int, *_: Any) -> Classifier:
        assert settings == Supervised(500, 6, 0.1 * 6 / 256, 0.2, False, freeze=True)
        trained = train_classifier(classifier, images, replace(settings, steps=20), seed)
        assert checksum(trained.encoder) == before
        linear_layers.append(checksum(trained.linear))
        return trained

    before = checksum(load_encoder(run))
    monkeypatch.setattr(methods, "train_classifier", watched)
    options: Settings = {"labels_per_class": "20%", "draws": 2, "probe": "sgd", "baselines": ()}
    first = stepclr.evaluate(run, train, test, **options)
    assert stepclr.evaluate(run, train, test, **options) == first
    stepclr.evaluate(run, train, test, seed=1, **options)
    assert linear_layers[:2] == linear_layers[2:4]
    assert len(set(linear_layers)) == 4
    told = first.protocol["methods"]["sgd"]
    assert told["views"] == "crop (area from 0.2) and flip"
    assert (told["epochs"], told["lr_at_batch_256"]) == ("90, and at least 500 steps", 0.1)
    assert told["steps"] == {"20%": [500, 500]}
    assert first.protocol["confusion"]["method"] == "sgd"


def test_whatever_is_trained_from_a_run_is_mirrored_as_often_as_its_views(
    tmp_path: Path, train: ImageSet, test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents must not be."""
    run = untrained_run(tmp_path)
    run_config(policy="domain:document", min_area=0.5).write(run)
    flips: list[float] = []

    def noted(classifier: Classifier, _: ImageSet, settings: Supervised, *__: Any) -> Classifier:
        flips.append(settings.flip)
        return classifier.eval()

    for module in ("methods", "baselines", "finetune"):
        monkeypatch.setattr(f"stepclr.evaluation.{module}.train_classifier", noted)
    options: Settings = {"labels_per_class": 1, "draws": 1, "probe": "sgd", "baselines": "scratch"}
    told = stepclr.evaluate(run, train, test, finetune=True, **options).protocol["methods"]
    assert flips == [0.0] * 3
    for method in ("scratch", "sgd", "finetuned"):
        assert told[method]["views"] == "crop (area from 0.5) and flip with probability 0"


def test_a_share_of_the_labels_is_said_with_their_number(run: Path, train: ImageSet, test: ImageSet) -> None:
    scores = stepclr.evaluate(run, train, test, "10%,all", draws=2, baselines=())
    assert [(row.method, row.labels_per_class, row.labels) for row in scores.rows] == [
        ("simclr", "10%", 3), ("simclr", "all", 30), ("knn", "10%", 3), ("knn", "all", 30),
    ]  # fmt: skip
    assert scores.protocol["methods"]["simclr"]["l2"]["10%"] == [10, 10]  # one label a class
    assert list(score_table(scores).columns[0].cells) == ["10 % of the labels (3)", "", "all labels", ""]
    assert [[point[0] for point in curve] for curve in label_curves(scores).values()] == [[1, 10], [1, 10]]


def test_what_is_done_is_announced_in_words(run: Path, train: ImageSet, test: ImageSet) -> None:
    said: list[str] = []
    stepclr.evaluate(
        run, train, test, (2, "all"), draws=2, probe="linear", baselines="scratch", scratch_steps=1,
        announce=said.append,
    )  # fmt: skip
    first = "the images and their representations"
    expected = [first, f"{first}, 30 of 30", f"{first}, 24 of 24"]
    for name in ("simclr", "scratch"):  # first what has its features already
        expected.append(f"{name}: features")
        if name == "scratch":
            expected.append("scratch: the choice of a rate")
        draws = [f"{name}, 2 labels per class, draw {number} of 2" for number in (1, 2)]
        expected += [draws[0], f"{name}, all labels", draws[1]]
    assert said == [*expected, "the rest of the linear evaluations"]


def test_each_file_is_decoded_once_however_many_encoders_see_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, images, labels in (("train", *striped(12, seed=1)), ("test", *striped(6, seed=2))):
        for number, label in enumerate(labels):
            folder = tmp_path / name / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number]).save(folder / f"{number}.png")
    files: list[str] = []

    def decoded(file: Any, *given: Any) -> Any:
        files.append(file.name)
        return decode.decoded(file, *given)

    monkeypatch.setattr("stepclr.data.stores.decoded", decoded)
    seconds: list[float] = []
    stepclr.evaluate(run, tmp_path / "train", tmp_path / "test", (2, "all"), draws=3, left=seconds.append)
    assert len(files) == len(set(files)) == 18
    assert min(seconds) >= 0
    assert seconds[-1] < 0.01  # nothing is left at the end


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The one number in it is the time, of the clock and of every thread."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return now


def test_the_time_left_follows_the_pace_of_each_kind_of_work(clock: list[float]) -> None:
    """Decoding, the encoder, training and fits each take another multiple of what is expected."""
    said: list[float] = []
    work = Work(said.append, classes=3, features=8, pixels=12, scratch_steps=10)
    names = ("pixels", "random", "scratch", "simclr", "knn")
    sizes = {name: expected_sizes((2, "all"), 2, 90, 3) for name in names}
    assert sizes["knn"] == [(0, 6), (0, 90), (1, 6)]
    work.expect(sizes, 90, 10, opened=100)

    def taken(count: Progress, seconds: float, of: int) -> None:
        for done in range(1, of + 1):
            clock[0] += seconds
            count(done, of)

    # What a kind takes is known from its first timed part on, and then what is left falls as fast as the clock goes.
    for kind, seconds in ((work.decoded, 1.0), (work.represented, 20.0)):
        taken(work.images(kind), seconds, 90)
        taken(work.images(kind), seconds, 10)
        assert kind.pace == pytest.approx(seconds)
    work.fitted["pixels", 90].expected = work.fitted["simclr", 90].expected = lambda: 500.0
    fits = 2 * 500 + sum(kind.left for (_, labels), kind in work.fitted.items() if labels == 6)

    # Scratch: 2 splits of 6 and one of 90, and for each number of labels 3 rates on 2 folds (of 3, and of 32 images).
    trained = 10 * (6 + 32 + 6) + 3 * 2 * 10 * (3 + 32)
    represented = 0.2 * 100 + (90 + 6 + 2 * 256 + 2 * 10) + 3 * 10 + 3 * (6 + 90)
    after_step = work.training("scratch", 32)
    for _ in range(2):
        clock[0] += 32 * 7.0
        after_step()
    assert said[-1] == pytest.approx(7 * (trained - 64) + 20 * represented + fits)

    # A fit on 6 labels took 3 s: so will the other of its method. One that runs has done a part of what it takes.
    work.fit_done("simclr", 6, 3.0)
    work.report({("simclr", 90): [100.0]})
    fits = sum(kind.left for kind in work.fitted.values()) - 100
    assert said[-1] == pytest.approx(7 * (trained - 64) + 20 * represented + fits)
    assert work.fitted["simclr", 6].left == 3


def test_a_long_fit_has_only_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    said: list[float] = []
    work = Work(said.append, classes=3, features=8, pixels=12, scratch_steps=10)
    work.expect({"simclr": [(0, 6), (1, 6), (0, 90)]}, 90, 10)
    work.fitted["simclr", 6].expected, work.fitted["simclr", 90].expected = lambda: 40.0, lambda: 100.0
    for had, left in (
        ({}, 100),
        ({("simclr", 90): [70.0], ("simclr", 6): [20.0]}, 45),
        ({("simclr", 90): [200.0]}, 40),
    ):
        work.report(had)
        assert said[-1] == left


def test_all_work_that_is_expected_is_counted(
    run: Path, train: ImageSet, test: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end all work is done, no more and no less: trials of rates, other encoders and seeds, all trainings."""
    made: list[Work] = []

    class Kept(Work):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(api, "Work", Kept)
    for name in ("SGD_EPOCHS", "MIN_STEPS"):
        monkeypatch.setattr(methods, name, 2)
    monkeypatch.setattr(FinetuneSettings, "training", lambda self, n: Supervised(2, n, self.peak, 0.2, False))
    other, seed = untrained_run(tmp_path / "other"), untrained_run(tmp_path / "seed", seed=1)
    for number, each in enumerate((run, seed)):
        run_config(seed=number).write(each)
    seconds: list[float] = []
    stepclr.evaluate(
        run, train, test, (1, "all"), draws=2, probe=("linear", "sgd", "knn"), scratch_steps=3, finetune=True,
        baselines=(*api.BASELINES, str(other)), left=seconds.append, seeds=[seed],
    )  # fmt: skip
    (work,) = made
    assert set(work.of_others) == {str(other)}
    assert {name for name, _ in work.fitted} == {"pixels", "random", "simclr", str(other)}
    for kind in work.kinds():
        assert kind.total > 0 or kind is work.decoded  # arrays are images already
        assert kind.done == pytest.approx(kind.total)
    assert seconds[-1] == 0


def test_a_bank_of_fewer_than_20_votes_whole(run: Path, test: ImageSet) -> None:
    scores = stepclr.evaluate(run, named(9, seed=1), test, probe="knn", baselines=())
    assert scores.protocol["methods"]["knn"]["k"] == {"all": [9]}


# What is read, and when


def test_the_labels_of_test_are_read_once_after_the_last_prediction(
    run: Path, train: ImageSet, test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Watched(ImageSet):
        def __getattribute__(self, name: str) -> object:
            if name == "labels" and sys._getframe(1).f_globals["__name__"].startswith("stepclr.evaluation"):
                events.append("labels")
            return super().__getattribute__(name)

    watched = Watched(**{name: getattr(test, name) for name in ImageSet.__dataclass_fields__})

    def recorded(tensors: dict[str, torch.Tensor]) -> str:
        events.append("checksum")
        return state_checksum(tensors)

    monkeypatch.setattr(api, "state_checksum", recorded)
    monkeypatch.setattr(FinetuneSettings, "training", lambda self, n: Supervised(2, n, self.peak, 0.2, False))
    stepclr.evaluate(
        run, train, watched, (2, "all"), draws=2, baselines=api.BASELINES, scratch_steps=2, finetune=True,
        progress=lambda done, total: events.append(f"{done}/{total}"),
    )  # fmt: skip
    predictions = [f"{done}/18" for done in range(1, 19)]  # (2 draws of 2 + 1 of all) x 6 methods
    assert events == ["checksum", *predictions, "checksum", "labels"]


def test_other_test_labels_change_scores_but_no_prediction(
    run: Path, train: ImageSet, test: ImageSet, quick: list[dict[Any, list[Fit]]]
) -> None:
    settings: Settings = {
        "labels_per_class": 4,
        "draws": 2,
        "baselines": ("pixels", "random", "scratch"),
        "scratch_steps": 3,
    }
    first = stepclr.evaluate(run, train, test, **settings)
    shuffled = replace(test, labels=np.random.default_rng(0).permutation(test.labels))
    second = stepclr.evaluate(run, train, shuffled, **settings)
    assert [row.values for row in first.rows] != [row.values for row in second.rows]
    assert quick[0].keys() == quick[1].keys()
    for one, other in zip(quick[0].values(), quick[1].values(), strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.predicted == b.predicted).all()
            assert a.chosen == b.chosen


def test_labels_outside_the_draw_are_not_learnt_from(
    run: Path, train: ImageSet, test: ImageSet, quick: list[dict[Any, list[Fit]]]
) -> None:
    """Exchange the images of two classes outside the first draw: its predictions stay, those of kNN do not."""
    settings: Settings = {"labels_per_class": 2, "draws": 1, "baselines": ("pixels", "scratch"), "scratch_steps": 3}
    stepclr.evaluate(run, train, test, **settings)
    drawn = label_splits(train.labels, CLASSES, [2], 1, 0)[0].indices
    order = np.arange(len(train))
    left = [np.setdiff1d(np.flatnonzero(train.labels == label), drawn) for label in (0, 1)]
    order[left[0]], order[left[1]] = left[1], left[0]
    stepclr.evaluate(run, replace(train.take(order), labels=train.labels), test, **settings)
    for method in ("pixels", "scratch", "simclr"):
        assert (quick[0][method, 2][0].predicted == quick[1][method, 2][0].predicted).all()
    assert (quick[0]["knn", "all"][0].predicted != quick[1]["knn", "all"][0].predicted).any()


# The encoder stays as it was


def test_the_encoder_is_proven_unchanged(run: Path, train: ImageSet, test: ImageSet) -> None:
    file = (run / "encoder.safetensors").read_bytes()
    scores = stepclr.evaluate(run, train, test, 2, draws=1, baselines=("random", "scratch"), scratch_steps=2)
    told = scores.protocol["encoder_sha256"]
    assert told["before"] == told["after"] == checksum(load_encoder(run))
    assert (run / "encoder.safetensors").read_bytes() == file


def test_the_checksum_sees_weights_and_buffers(run: Path) -> None:
    first, seen = checksum(load_encoder(run)), set()
    for name, tensor in load_encoder(run).state_dict().items():
        encoder = load_encoder(run)
        changed = encoder.state_dict()[name]
        changed.view(-1)[0] += 1
        seen.add(checksum(encoder))
        assert tensor.shape == changed.shape
    assert first not in seen
    assert len(seen) == len(load_encoder(run).state_dict())


def test_features_taken_in_train_mode_are_caught(
    run: Path, train: ImageSet, test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_train_mode(encoder: Encoder, images: ImageSet, **_: Any) -> tuple[torch.Tensor, NDArray[np.int64]]:
        encoder.train()
        with torch.no_grad():
            return encoder(encoder.preprocess(images.read(range(len(images))))), np.arange(len(images))

    monkeypatch.setattr(prepare, "represent", in_train_mode)
    with pytest.raises(RuntimeError, match="changed while it was evaluated"):
        stepclr.evaluate(run, train, test, baselines=())
    assert not (run / "evaluation.json").exists()


def test_batchnorm_answers_with_the_stored_statistics(run: Path, train: ImageSet, test: ImageSet) -> None:
    """An image's prediction does not depend on which others are scored with it."""
    scores = stepclr.evaluate(run, train, test, baselines=())
    half = stepclr.evaluate(run, train, test.take(range(12)), baselines=())
    rest = stepclr.evaluate(run, train, test.take(range(12, 24)), baselines=())
    for whole, a, b in zip(scores.rows, half.rows, rest.rows, strict=True):
        assert whole.mean == pytest.approx((a.mean + b.mean) / 2)


# Which images count


def test_unlabeled_images_are_left_out_and_counted(run: Path, train: ImageSet, test: ImageSet) -> None:
    plain = stepclr.evaluate(run, train, test, baselines=())
    more = replace(named(40, 1), labels=np.concatenate([train.labels, np.full(10, -1)]))
    images = np.concatenate([striped(30, 1)[0], striped(10, 5)[0]])
    more = replace(open_images((images, more.labels)), classes=CLASSES, source="pile 1")
    scores = stepclr.evaluate(run, more, test, baselines=())
    assert scores.rows == plain.rows
    assert scores.protocol["train"] == plain.protocol["train"] | {"left_out_without_label": 10}


def test_labels_are_matched_by_name(run: Path, train: ImageSet, test: ImageSet) -> None:
    plain = stepclr.evaluate(run, train, test, baselines=())
    order = ["cat", "ant", "bee"]
    renamed = replace(test, classes=order, labels=np.array([order.index(CLASSES[label]) for label in test.labels]))
    assert stepclr.evaluate(run, train, renamed, baselines=()).rows == plain.rows


def test_a_run_of_chosen_classes_is_scored_on_these(tmp_path: Path, train: ImageSet, test: ImageSet) -> None:
    run = untrained_run(tmp_path / "two", classes=["cat", "ant"])
    scores = stepclr.evaluate(run, train, test, baselines=())
    assert scores.protocol["classes"] == ["cat", "ant"]
    assert scores.protocol["train"] == {
        "source": "pile 1", "images": 20, "left_out_without_label": 0, "left_out_of_other_classes": 10,
        "left_out_unreadable": 0,
    }  # fmt: skip
    assert scores.protocol["test"]["left_out_of_other_classes"] == 8
    named_two = stepclr.evaluate(run, train.keep(["ant", "cat"]), test.keep(["cat", "ant"]), baselines=())
    assert named_two.rows == scores.rows


def test_folders_with_a_broken_image(run: Path, tmp_path: Path) -> None:
    for part, name in enumerate(("train", "test")):
        images, labels = striped(13, part)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / name / CLASSES[label] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        (tmp_path / name / "bee" / "00.png").write_bytes(b"no image")
        Image.fromarray(images[0]).save(tmp_path / name / "loose.png")
    told = stepclr.evaluate(run, str(tmp_path / "train"), tmp_path / "test", 2, draws=1).protocol
    for name in ("train", "test"):
        assert told[name] == {
            "source": str(tmp_path / name), "images": 13, "left_out_without_label": 1, "left_out_of_other_classes": 0,
            "left_out_unreadable": 1,
        }  # fmt: skip


# What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels_per_class": "al"}, r"labels_per_class must be counts"),
        ({"labels_per_class": 11}, r"'ant' of train has 10 labels; ask for at most 10"),
        ({"probe": "linar"}, r"unknown probe 'linar'. Did you mean 'linear'\?"),
        ({"baselines": "pixel,random"}, r"unknown baseline 'pixel'. Did you mean 'pixels'\?"),
        ({"baselines": ("knn",)}, r"unknown baseline 'knn'"),
        ({"draws": 0}, r"draws must be at least 1, not 0"),
        ({"seed": -1}, r"seed must be at least 0, not -1"),
        ({"scratch_steps": 0}, r"scratch_steps must be at least 1"),
        ({"knn_k": 0}, r"knn_k must be at least 1, not 0"),
        ({"knn_temperature": 0.0}, r"knn_temperature must be above 0, not 0"),
        ({"scratch_steps": 9}, r"scratch_steps has no effect here: it is for baselines=scratch"),
        ({"probe": "linear", "knn_k": 9}, r"knn_k has no effect here: it is for probe=knn"),
        ({"probe": "linear", "knn_temperature": 0.2}, r"knn_temperature has no effect here: it is for probe=knn"),
        ({"probe": (), "baselines": ()}, r"no probe and no baseline"),
        ({"run": "nowhere"}, r"nowhere has no encoder\.safetensors"),
    ],
)
def test_what_cannot_be_meant_is_one_line_before_any_work(
    run: Path, train: ImageSet, test: ImageSet, wrong: Settings, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "represent", None)
    with pytest.raises(StepclrError, match=message) as error:
        stepclr.evaluate(wrong.pop("run", run), train, test, **wrong)
    assert one_line(error)


@pytest.mark.parametrize("which", ["train", "test"])
def test_classes_that_differ_are_named_with_the_nearest(run: Path, train: ImageSet, test: ImageSet, which: str) -> None:
    sets: Settings = {"train": train, "test": test}
    sets[which] = replace(sets[which], classes=["ant", "bee", "cats"])
    with pytest.raises(StepclrError, match=r"'cats?', of which pile 1 has no image\. Did you mean 'cats?'\?") as error:
        stepclr.evaluate(run, **sets)
    assert one_line(error)


def test_a_class_too_many_in_test_is_an_error_too(run: Path, test: ImageSet) -> None:
    with pytest.raises(StepclrError, match="pile 2 has the class 'cat', of which pile 1 has no image"):
        stepclr.evaluate(run, named(20, 1, classes=2), test)


def test_a_test_set_that_lacks_classes_is_scored_on_the_others(run: Path, train: ImageSet, test: ImageSet) -> None:
    whole = stepclr.evaluate(run, train, test, baselines=())
    scores = stepclr.evaluate(run, train, test.keep("cat"), baselines=())
    assert (whole.protocol["classes_not_in_test"], scores.protocol["classes_not_in_test"]) == ([], ["ant", "bee"])
    assert scores.protocol["classes"] == CLASSES
    of_cat = [row["matrix"][2] for row in (whole.protocol["confusion"], scores.protocol["confusion"])]
    assert of_cat[0] == of_cat[1]
    assert scores.rows[0].mean == of_cat[0][2] / sum(of_cat[0])
    assert "which lack ant, bee" in str(score_table(scores).title)


def test_the_confusion_is_that_of_the_most_labels_wherever_they_stand(
    run: Path, train: ImageSet, test: ImageSet
) -> None:
    scores = stepclr.evaluate(run, train, test, ["all", "50%", 2], draws=1, probe="knn", baselines=())
    assert scores.protocol["confusion"]["labels_per_class"] == "all"


def test_sets_without_the_run_s_classes_are_refused(tmp_path: Path, train: ImageSet, test: ImageSet) -> None:
    run = untrained_run(tmp_path / "run", classes=["ant", "bees"])
    with pytest.raises(StepclrError, match=r"unknown class of pile 1 'bees'. Did you mean 'bee'\?"):
        stepclr.evaluate(run, train, test)


@pytest.mark.parametrize("which", ["train", "test"])
def test_a_set_without_labels_is_refused(run: Path, train: ImageSet, test: ImageSet, which: str) -> None:
    sets: Settings = {"train": train, "test": test}
    sets[which] = open_images(striped(6, 3)[0])
    with pytest.raises(StepclrError, match="array has no labels") as error:
        stepclr.evaluate(run, **sets)
    assert one_line(error)


def test_a_set_whose_labels_are_all_missing_is_refused(run: Path, train: ImageSet, test: ImageSet) -> None:
    with pytest.raises(StepclrError, match="pile 2 has no labels"):
        stepclr.evaluate(run, train, replace(test, labels=np.full(len(test), -1)))


def test_one_class_is_no_task(run: Path) -> None:
    with pytest.raises(StepclrError, match="has one class, 'ant'"):
        stepclr.evaluate(run, named(5, 1, classes=1), named(5, 2, classes=1))


# Written down


def test_the_protocol_is_all_in_plain_fields(run: Path, train: ImageSet, test: ImageSet) -> None:
    told = stepclr.evaluate(
        run, train, test, "1,2", draws=2, seed=3, baselines="pixels,random,scratch", scratch_steps=2
    ).protocol
    assert told["labels_per_class"] == [1, 2]
    assert (told["draws"], told["seed"]) == (2, 3)
    assert told["encoder"] == {"name": "test_resnet", "stem": "small-stride2", "size": 16}
    assert told["versions"] == software()
    assert set(told["versions"]) == {"stepclr", "torch", "python"}
    assert told["threads"] == torch.get_num_threads()
    assert told["linear_evaluation"]["l2_at_1_label"] == 10
    assert told["methods"]["simclr"]["l2"]["1"] == [10, 10]
    assert all(1e-6 <= value <= 1e5 for value in told["methods"]["pixels"]["l2"]["2"])
    scratch = told["methods"]["scratch"]
    assert scratch["rate"]["1"] == [0.03, 0.03]
    assert len(set(scratch["rate"]["2"])) == 1
    assert scratch["steps"] == 2
    assert list(told["methods"]) == ["pixels", "random", "scratch", "simclr", "knn"]


def test_an_image_that_vanishes_on_the_way_is_an_error(
    run: Path, train: ImageSet, test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = represent

    def one_less(encoder: Encoder, images: ImageSet, **_: Any) -> tuple[torch.Tensor, NDArray[np.int64]]:
        h, kept = original(encoder, images)
        return (h[1:], kept[1:]) if encoder.name == "pixels" else (h, kept)

    monkeypatch.setattr(prepare, "represent", one_less)
    with pytest.raises(StepclrError, match="can no longer be read"):
        stepclr.evaluate(run, train, test)


def test_runs_that_differ_in_their_seed_show_its_spread(
    tmp_path: Path, train: ImageSet, test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [untrained_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
    for seed, run in enumerate(runs):
        run_config(seed=seed, monitor=str(seed)).write(run)
    options: Settings = {"labels_per_class": 2, "draws": 2, "baselines": "pixels"}
    compared: list[ImageSet] = []

    def watched(images: ImageSet) -> Fingerprints:
        compared.append(images)
        return fingerprints(images)

    with monkeypatch.context() as patch:
        patch.setattr(overlap, "fingerprints", watched)
        scores = stepclr.evaluate(runs[0], train, test, **options, seeds=runs)
    assert len(compared) == 2  # train and test are compared once, not for each run
    assert {path.name for path in (tmp_path / "1").iterdir()} == {"config.json", "encoder.safetensors"}
    assert Scores.from_dict(json.loads((runs[0] / "evaluation.json").read_text())) == scores
    assert scores.protocol["seeds"] == {str(run): seed for seed, run in enumerate(runs)}

    # Each value is that of a run scored alone, on the same splits.
    alone = [stepclr.evaluate(run, train, test, **options) for run in runs]
    added = {(row.method, row.labels_per_class): row for row in scores.rows[len(alone[0].rows) :]}
    assert scores.rows[: len(alone[0].rows)] == alone[0].rows
    assert list(added) == [("simclr over 3 seeds", 2), ("knn over 3 seeds", 2), ("knn over 3 seeds", "all")]
    for (method, labels), row in added.items():
        means = [
            next(one.mean for one in each.rows if (one.method, one.labels_per_class) == (method.split()[0], labels))
            for each in alone
        ]
        assert row.values == means
        assert (row.mean, row.std) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    assert "simclr over 3 seeds" in [str(cell) for cell in score_table(scores).columns[1].cells]


def test_runs_that_differ_in_more_than_their_seed_are_refused(tmp_path: Path, train: ImageSet, test: ImageSet) -> None:
    first, second = (untrained_run(tmp_path / name) for name in "ab")
    run_config(seed=0).write(first)
    for given, words in (
        ({"seed": 1, "epochs": 7}, "in more than its seed: epochs is 7"),
        ({"seed": 1, "names_checksum": "1"}, "in more than its seed: names_checksum is 1"),
        ({"seed": 0}, "have the same seed, 0"),
    ):
        run_config(**given).write(second)
        for seeds in (str(second), stepclr.Run(second), [second]):
            with pytest.raises(StepclrError, match=words) as error:
                stepclr.evaluate(first, train, test, seeds=seeds)
            assert one_line(error)
    run_config(seed=1).write(second)
    with pytest.raises(StepclrError, match="seeds need a probe, or finetune"):
        stepclr.evaluate(first, train, test, seeds=[second], probe=())
    with pytest.raises(StepclrError, match="seeds names no run besides"):
        stepclr.evaluate(first, train, test, seeds=[first])
    (second / "config.json").unlink()
    with pytest.raises(StepclrError, match="is not the folder of a run"):
        stepclr.evaluate(first, train, test, seeds=[second])


def test_another_run_is_a_baseline_by_any_kind_of_path(
    run: Path, train: ImageSet, test: ImageSet, tmp_path: Path
) -> None:
    other = untrained_run(tmp_path / "other", seed=1)
    for given in (str(other), other, stepclr.Run(other), [stepclr.Run(other)]):
        rows = stepclr.evaluate(run, train, test, 2, draws=1, probe=(), baselines=given).rows
        assert [row.method for row in rows] == [str(other)]


def test_a_run_may_have_the_name_of_a_method(
    train: ImageSet, test: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    untrained_run(tmp_path / "pixels")
    untrained_run(tmp_path / "simclr")
    scores = stepclr.evaluate("pixels", train, test, baselines="pixels")
    assert scores.protocol["confusion"]["method"] == "simclr"
    with pytest.raises(StepclrError, match="unknown baseline 'simclr'"):
        stepclr.evaluate("pixels", train, test, baselines="simclr")


def test_numbers_may_be_numpy_s() -> None:
    """A loop over `numpy.arange` gives such seeds."""
    scores = Scores([], {"seed": np.int64(1), "methods": {"knn": {"T": np.float32(0.5)}}})
    assert json.loads(scores.to_json())["protocol"] == {"seed": 1, "methods": {"knn": {"T": 0.5}}}


def test_a_class_none_of_whose_images_can_be_read_is_named(run: Path, test: ImageSet, tmp_path: Path) -> None:
    for i, image in enumerate(test.read(range(9))):
        path = tmp_path / "train" / CLASSES[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    for path in (tmp_path / "train" / "bee").iterdir():
        path.write_bytes(b"")
    for scored_on in ({"test": test}, {"holdout": 0.4}):
        with pytest.raises(StepclrError, match="train: no image of class 'bee' can be read") as error:
            stepclr.evaluate(run, tmp_path / "train", **scored_on)
        assert one_line(error)
