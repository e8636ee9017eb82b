"""From an encoder and few labels to a classifier, and from it to predictions, as a user does it: on real images."""

import copy
import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import call, checksum
from torch import nn
from torch.optim import SGD, Optimizer

import stepclr
from stepclr.data.images import ImageSet
from stepclr.data.order import epoch_order
from stepclr.errors import StepclrError
from stepclr.evaluation.finetune import FinetuneSettings, finetuned
from stepclr.evaluation.init_from import InitialWeights, initial_weights
from stepclr.evaluation.results import Score, Scores
from stepclr.evaluation.splits import Split, label_splits
from stepclr.model.build import build_encoder
from stepclr.model.classifier import Classifier
from stepclr.model.files import load_classifier, save_classifier
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.pretraining.classifier import Supervised, logits, train_classifier
from stepclr.pretraining.loop import Diverged
from stepclr.pretraining.optim import LARS, lr_multiplier
from stepclr.tools.label_chart import label_chart, label_curves
from stepclr.tools.scores import paired_lines, score_table
from stepclr.views.keys import view_keys
from stepclr.views.views import Views

TINY = [
    "--encoder",
    "test_resnet",
    "--stem",
    "small-stride2",
    "--epochs",
    "1",
    "--batch-size",
    "32",
    "--limit",
    "64",
    "--head",
    "32-32-16",
]
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on the sample."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert call("pretrain", "sample:unlabeled", "--out", out, *TINY) == 0
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy, to be written into."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return stepclr.open_images("sample:train", limit=120)


@pytest.fixture(scope="module")
def test() -> ImageSet:
    return stepclr.open_images("sample:test", limit=60)


@pytest.fixture(scope="module")
def labeled(train: ImageSet, test: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two sets as a user has them: train/Bag/00.png ..."""
    folder = tmp_path_factory.mktemp("labeled")
    for name, images in (("train", train), ("test", test)):
        for i, label in enumerate(images.labels):
            path = folder / name / images.classes[label].replace("/", "-") / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.read([i])[0].permute(1, 2, 0).numpy()).save(path)
    return folder


@pytest.fixture
def photos(tmp_path: Path, test: ImageSet) -> Path:
    """A folder of five images, one with an awkward name, and a truncated file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(["a", "b", "c", 'coat, "black"', "e"]):
        Image.fromarray(test.read([i])[0].permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
    (folder / "truncated.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def new_classifier(head: str = "", kept_layers: int = 0) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder("test_resnet", "small-stride2", size=28)
        return Classifier(encoder, [str(c) for c in range(10)], head, kept_layers)


# The training loop


def by_the_book(classifier: Classifier, images: ImageSet, how: Supervised, seed: int) -> None:
    """The loop written out: every batch, rate and update."""
    velocity = [torch.zeros_like(p) for p in classifier.parameters()]
    classifier.train().to(memory_format=torch.channels_last)
    per_epoch = max(1, len(images) // how.batch_size)
    views = Views(f"crop+HorizontalFlip({how.flip})", size=classifier.encoder.size, min_area=how.min_area, views=1)
    for step in range(how.steps):
        epoch, k = divmod(step, per_epoch)
        at = epoch_order(seed, epoch, len(images))[k * how.batch_size : (k + 1) * how.batch_size]
        x = views(images.read(at), view_keys(seed, epoch, at))[0].contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(classifier(x), torch.from_numpy(images.labels[at]), label_smoothing=how.label_smoothing)
        gradients = torch.autograd.grad(loss, list(classifier.parameters()))
        with torch.no_grad():
            for p, v, gradient in zip(classifier.parameters(), velocity, gradients, strict=True):
                g = gradient + how.weight_decay * p
                v.mul_(0.9).add_(g)
                p.sub_(how.rate * lr_multiplier(step, how.steps, 0) * (g + 0.9 * v))


@pytest.mark.parametrize(("smoothing", "flip"), [(0.0, 0.5), (0.1, 0.0)])
def test_training_is_nesterov_sgd_on_crop_and_flip_views(train: ImageSet, smoothing: float, flip: float) -> None:
    how = Supervised(5, 32, 0.05, 0.4, False, weight_decay=5e-4, label_smoothing=smoothing, flip=flip)
    one, other = new_classifier(), new_classifier()
    assert train_classifier(one, train, how, seed=3) is one
    by_the_book(other, train, how, seed=3)
    assert not one.training
    for name, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kept_layers", [0, 1])
def test_frozen_all_but_the_linear_layer_stays_bit_for_bit(train: ImageSet, kept_layers: int) -> None:
    classifier = new_classifier("32-16" if kept_layers else "", kept_layers)
    parts = classifier.encoder, classifier.neck, classifier.linear
    before = [checksum(part) for part in parts]
    classifier.train()
    train_classifier(classifier, train, Supervised(4, 32, 0.1, 0.4, bf16=False, weight_decay=0.1, freeze=True), 0)
    frozen = [checksum(part) == was for part, was in zip(parts, before, strict=True)]
    assert frozen == [True, True, False]
    assert all(p.requires_grad for p in classifier.parameters())
    train_classifier(classifier, train, Supervised(4, 32, 0.1, 0.4, bf16=False), 0)
    assert not any(checksum(part) == was for part, was in zip(parts, before, strict=True) if part.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_what_a_timm_network_excludes_does_not_decay(train: ImageSet, optimizer: str) -> None:
    encoder = build_encoder("test_vit", size=32)
    start = Classifier(encoder, [str(k) for k in range(10)])
    after = []
    for decay in (0.0, 0.5):
        how = Supervised(1, 16, 0.1, 0.4, bf16=False, weight_decay=decay, optimizer=optimizer)
        after.append(train_classifier(copy.deepcopy(start), train, how, seed=0).encoder.body.state_dict())
    same = {name for name, value in after[0].items() if torch.equal(value, after[1][name])}
    assert {"cls_token", "pos_embed"} <= same
    assert not {"blocks.0.mlp.fc1.weight", "patch_embed.proj.weight"} & same


def test_a_frozen_encoder_answers_in_eval_mode(train: ImageSet) -> None:
    """One step from a zero layer is the gradient on h as the stored statistics give it."""
    classifier = new_classifier()
    torch.nn.init.zeros_(classifier.linear.weight)
    torch.nn.init.zeros_(classifier.linear.bias)
    train_classifier(classifier, train, Supervised(1, 32, 1.0, 0.4, bf16=False, freeze=True), seed=5)
    at = epoch_order(5, 0, len(train))[:32]
    x = Views("crop", size=28, min_area=0.4, views=1)(train.read(at), view_keys(5, 0, at))[0]
    target = F.one_hot(torch.from_numpy(train.labels[at]), 10).float()
    gradient = (0.1 - target).T @ classifier.encoder(x) / 32
    torch.testing.assert_close(classifier.linear.weight, -1.9 * gradient, rtol=1e-4, atol=1e-6)  # 1 + momentum


def test_logits_are_of_the_center_crop_in_eval_mode(test: ImageSet) -> None:
    classifier = new_classifier().train()
    found, kept = logits(classifier, test)
    assert classifier.training
    assert kept.tolist() == list(range(60))
    classifier.eval()
    expected = classifier(classifier.encoder.preprocess(test.read(range(60))))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# finetune


def test_finetune_then_predict(run: Path, labeled: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = (run / "encoder.safetensors").read_bytes()
    sources = ["--train", labeled / "train", "--test", labeled / "test"]
    assert call("finetune", run, *sources, "--labels-per-class", "2,4", "--draws", "2", "--epochs", "3") == 0
    shown = capsys.readouterr().out
    scores = json.loads((run / "finetune.json").read_text())
    assert [(r["method"], r["labels_per_class"], len(r["values"])) for r in scores["rows"]] == [
        ("finetuned", 2, 2),
        ("finetuned", 4, 2),
    ]
    for row in scores["rows"]:
        assert f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f} %" in shown
    assert f"{run / 'classifier.safetensors'}: classifier trained with 4 labels per class, draw 1" in shown
    assert f"classifier.safetensors: top-1 {100 * scores['rows'][1]['values'][0]:.1f} % on the 60 test images" in shown
    assert (run / "encoder.safetensors").read_bytes() == encoder

    out = run.parent / "predictions.csv"
    assert call("predict", run, photos, "--out", out) == 0
    assert "5 predictions; 1 images could not be read" in capsys.readouterr().out
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    classes = scores["protocol"]["classes"]
    assert list(table[0]) == ["path", "predicted", "probability", *(f"p:{name}" for name in classes)]
    assert [row["path"] for row in table] == ["a.png", "b.png", "c.png", 'coat, "black".png', "e.png"]
    with pytest.warns(UserWarning, match="1 images of .* cannot be read"):
        predictions = stepclr.predict(run / "classifier.safetensors", photos)
    probabilities = predictions.probabilities
    assert predictions.classes == classes
    assert probabilities.dtype == np.float32
    assert np.isnan(probabilities[5]).all()
    np.testing.assert_allclose(probabilities[:5].sum(1), 1, rtol=1e-5)
    classifier = load_classifier(run)
    for row, own in zip(table, probabilities, strict=False):
        x = classifier.encoder.preprocess(Image.open(photos / row["path"]))
        np.testing.assert_allclose(own, classifier(x).softmax(1).detach()[0], rtol=1e-3, atol=1e-6)
        assert row["predicted"] == classes[own.argmax()]
        assert float(row["probability"]) == float(row[f"p:{row['predicted']}"]) == pytest.approx(own.max(), rel=1e-4)
    assert "truncated.jpg" in (run.parent / "predictions.skipped.csv").read_text()


def test_it_learns(run: Path) -> None:
    """Half of the images, seen often, are memorized."""
    bags = stepclr.open_images("sample:train", classes=["Bag", "Trouser"], limit=40)
    stepclr.finetune(run, bags, epochs=60)
    probabilities = stepclr.predict(run, bags).probabilities
    assert (probabilities.argmax(1) == bags.labels).mean() > 0.9


def test_the_classifier_is_that_of_the_largest_budget_s_first_draw(run: Path, train: ImageSet, test: ImageSet) -> None:
    stepclr.finetune(run, train, test, [3, 1], draws=2, seed=7, out=run / "own.safetensors", **SHORT)
    config = stepclr.Run(run).config
    settings = FinetuneSettings(min_area=config.min_area, bf16=config.precision == "bf16", **SHORT)
    split = label_splits(train.labels, train.classes, [3], 1, 7)[0]
    expected = finetuned(initial_weights(stepclr.Run(run)), train, split, settings)
    assert checksum(load_classifier(run / "own.safetensors")) == checksum(expected)
    assert not (run / "classifier.safetensors").exists()


def test_the_same_call_gives_the_same_and_test_labels_change_scores_alone(
    run: Path, train: ImageSet, test: ImageSet
) -> None:
    first = stepclr.finetune(run, train, test, 2, draws=2, **SHORT)
    made = checksum(load_classifier(run))
    torch.manual_seed(99)
    assert stepclr.finetune(run, train, test, 2, draws=2, **SHORT) == first
    assert checksum(load_classifier(run)) == made
    # Nearly all of one class: whoever predicts anything, a single class included, scores otherwise than before.
    others = replace(test, labels=np.where(np.arange(len(test)) < 20, test.labels, 0))
    assert stepclr.finetune(run, train, others, 2, draws=2, **SHORT).rows != first.rows
    assert checksum(load_classifier(run)) == made
    stepclr.finetune(run, train, test, 2, draws=2, seed=1, **SHORT)
    assert checksum(load_classifier(run)) != made


def test_without_test_there_is_no_score_and_one_training(run: Path, train: ImageSet) -> None:
    for several in ({"labels_per_class": "2,all"}, {"draws": 3}):
        with pytest.raises(stepclr.StepclrError, match="has no effect here: it is for scores: give test, or holdout"):
            stepclr.finetune(run, train, **several, **SHORT)
    seen: list[Any] = []
    progress: Any = {"progress": lambda *now: seen.append(now), "announce": seen.append}
    result = stepclr.finetune(run, train, **progress, **SHORT)
    assert result.rows == []
    assert result.protocol["classifier"]["labels_per_class"] == "all"
    assert seen[0] == "the images and their representations"
    assert seen[-15:] == ["fine-tuning, all labels", *((step, 14) for step in range(1, 15))]  # 2 epochs of 7 batches


def test_small_draws_get_enough_steps() -> None:
    for n, batch, steps in ((10, 10, 500), (100, 32, 501), (1000, 62, 60 * 16), (10_000, 256, 60 * 39)):
        how = FinetuneSettings().training(n)
        assert (how.batch_size, how.steps) == (batch, steps)
        assert how.rate == pytest.approx(0.05 * (batch / 256) ** 0.5)
        assert how.weight_decay == 0
    assert FinetuneSettings(epochs=2).training(100).steps == 6


@pytest.mark.parametrize("layers", [1, 2])
def test_from_the_head_starts_as_encoder_and_head_layers(
    layers: int, run: Path, train: ImageSet, test: ImageSet
) -> None:
    """Before a step, logits are a linear layer on the first layers of the head that the run was pretrained with."""
    begin = initial_weights(stepclr.Run(run), f"head.{layers}")
    classifier = begin.classifier(train.classes, seed=0).eval()
    x = begin.encoder.preprocess(test.read(range(8)))
    state = load_file(checkpoints(run / "checkpoint")[-1])
    h = begin.encoder(x)
    for at in (0, 3)[:layers]:
        mean, var, weight, bias = (
            state[f"model.head.{at + 1}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        h = F.batch_norm(h @ state[f"model.head.{at}.weight"].T, mean, var, weight, bias).relu()
    torch.testing.assert_close(classifier(x), h @ classifier.linear.weight.T + classifier.linear.bias)
    out = run / "deep.safetensors"
    words = f"--train sample:train --labels-per-class 2 --epochs 1 --from head.{layers} --out {out}".split()
    assert call("finetune", run, *words) == 0
    classifier = load_classifier(out)
    assert (classifier.head, classifier.kept_layers) == ("32-32-16", layers)
    assert stepclr.predict(out, test).probabilities.shape == (60, 10)


def test_an_encoder_file_will_do_with_out(run: Path, train: ImageSet, tmp_path: Path) -> None:
    file, out = run / "encoder.safetensors", tmp_path / "c.safetensors"
    with pytest.raises(StepclrError, match="out must name a file for the classifier"):
        stepclr.finetune(file, train)
    stepclr.finetune(file, train, out=out, **SHORT)
    assert load_classifier(out).classes == train.classes


def test_a_weight_that_is_not_finite_is_reported(run: Path, train: ImageSet) -> None:
    with pytest.raises(Diverged, match=r"lr 1e\+30"):
        stepclr.finetune(run, train, lr=1e30, **SHORT)
    assert not (run / "classifier.safetensors").exists()


@pytest.mark.parametrize("name", ["module:Sequential", "a network of timm"])
def test_what_dropout_draws_comes_from_the_seed(name: str, train: ImageSet) -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)]
    initial = InitialWeights(build_encoder(nn.Sequential(*layers), size=28).eval())
    initial.encoder.name = name
    split, settings = Split(16, 0, np.arange(16), seed=3), FinetuneSettings(epochs=1)
    generator = torch.get_rng_state()
    made = []
    for _ in range(2):
        made.append(checksum(finetuned(initial, train, split, settings)))
        assert torch.equal(torch.get_rng_state(), generator)
        generator = torch.manual_seed(5).get_state()
    assert made[0] == made[1]


# What is refused


def damage(run: Path, what: str) -> None:
    if what == "no checkpoint":
        shutil.rmtree(run / "checkpoint")
    elif what in ("distill", "other head"):
        change = {"loss": "distill"} if what == "distill" else {"head": "64-64-16"}
        config = json.loads((run / "config.json").read_text()) | change
        (run / "config.json").write_text(json.dumps(config))
    elif what in ("other encoder", "truncated"):
        path = checkpoints(run / "checkpoint")[-1]
        tensors = load_file(path)
        tensors["model.encoder.body.conv1.weight"] += 1
        save_file(tensors, path)
        if what == "truncated":
            path.write_bytes(path.read_bytes()[:100])
    elif what == "no run":
        (run / "config.json").unlink()
    elif what == "few":
        for i in range(3):
            (run / "photos" / ("cat" if i else "dog")).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(run / "photos" / ("cat" if i else "dog") / f"{i}.png")


@pytest.mark.parametrize(
    ("what", "words", "said"),
    [
        (
            "",
            "finetune RUN --train sample:train --labels-per-class 200",
            "of train has 100 labels; ask for at most 100",
        ),
        (
            "few",
            "finetune RUN --train RUN/photos --labels-per-class 2",
            "'dog' of train has 1 label; ask for at most 1",
        ),
        (
            "few",
            "finetune RUN --train sample:train --test RUN/photos",
            "RUN/photos has the class 'cat'",
        ),
        ("", "finetune RUN --train sample:unlabeled", "no labels"),
        ("", "finetune RUN --train sample:train --from haed.1", "Did you mean 'head.1'"),
        ("", "finetune RUN --train sample:train --epochs 0", "epochs must be at least 1"),
        ("", "finetune RUN --train sample:train --batch-size 1", "--batch-size must be at least 2"),
        ("", "finetune RUN --train sample:train --lr 0", "lr must be above 0"),
        ("", "finetune RUN --train sample:train --out c.pt", "must end in .safetensors"),
        (
            "",
            "finetune RUN --train sample:train --out RUN/encoder.safetensors",
            "RUN/encoder.safetensors exists and is not a classifier: choose another --out",
        ),
        ("", "finetune nowhere --train sample:train", "nowhere has no encoder.safetensors; it does not exist: give"),
        ("", "finetune RUN/none.safetensors --train sample:train", "none.safetensors does not exist"),
        ("", "finetune RUN/encoder.safetensors --train sample:train --from head.1", "is not the folder of a run"),
        ("no checkpoint", "finetune RUN --train sample:train --from head.1", "no checkpoint"),
        ("distill", "finetune RUN --train sample:train --from head.1", "which has no projection head"),
        ("distill", "finetune RUN --train sample:train", "is the classifier that pretraining trained"),
        (
            "distill",
            "finetune RUN/encoder.safetensors --train sample:train --out RUN/classifier.safetensors",
            "is the classifier that pretraining trained",
        ),
        ("other head", "finetune RUN --train sample:train --from head.1", "is not 64-64-16"),
        ("other encoder", "finetune RUN --train sample:train --from head.1", "a different encoder"),
        ("truncated", "finetune RUN --train sample:train --from head.1", "cannot be read"),
        ("no run", "finetune RUN --train sample:train --from head.1", "is not the folder of a run"),
        ("", "predict RUN sample:test --out p.csv", "finetune RUN --train LABELED trains one"),
        ("", "predict RUN/encoder.safetensors sample:test --out p.csv", "is an encoder, not a classifier"),
        ("", "predict RUN sample:test --out p.npz", "must end in .csv or .parquet or .json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Path, what: str, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run, what)
    before = sorted(run.iterdir())
    assert call(*words.replace("RUN", str(run)).split()) == 2
    *headings, shown = capsys.readouterr().err.splitlines()
    assert said.replace("RUN", str(run)) in shown
    assert not any(line.startswith("stepclr: ") for line in headings)
    assert sorted(run.iterdir()) == before


def test_a_classifier_is_not_an_encoder(run: Path, train: ImageSet, capsys: pytest.CaptureFixture[str]) -> None:
    stepclr.finetune(run, train, **SHORT)
    file = run / "classifier.safetensors"
    for words in (["finetune", file, "--train", "sample:train"], ["embed", file, "sample:test", "--out", "h.npz"]):
        assert call(*words) == 2
        assert "is a classifier, not an encoder" in capsys.readouterr().err


# The curve of label budgets


def test_evaluate_draws_a_curve_with_finetuning_in_it(
    run: Path, labeled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = ["--train", labeled / "train", "--test", labeled / "test"]
    words = ["--labels-per-class", "1,2", "--draws", "2", "--baselines", "scratch", "--scratch-steps", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneSettings, "training", lambda self, n: Supervised(3, n, self.peak, 0.4, False))
        assert call("evaluate", run, *sources, *words, "--finetune") == 0
    shown = capsys.readouterr().out
    scores = json.loads((run / "evaluation.json").read_text())
    rows = {(row["method"], row["labels_per_class"]): row["values"] for row in scores["rows"]}
    assert list(rows) == [
        ("scratch", 1), ("scratch", 2), ("simclr", 1), ("simclr", 2), ("finetuned", 1), ("finetuned", 2),
        ("knn", 1), ("knn", 2), ("knn", "all"),
    ]  # fmt: skip
    assert scores["protocol"]["methods"]["finetuned"]["steps"] == {"1": [3, 3], "2": [3, 3]}
    told = scores["protocol"]["encoder_sha256"]
    assert told["before"] == told["after"]
    assert "finetuned - scratch with 2 labels per class" in shown
    assert "simclr - scratch with 1 label per class" in shown
    assert "simclr - finetuned" not in shown
    assert str(run / "evaluation.png") in shown
    with Image.open(run / "evaluation.png") as image:
        assert min(image.size) > 300


def test_finetuning_scores_the_same_in_evaluate_and_on_its_own(run: Path, train: ImageSet, test: ImageSet) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            FinetuneSettings, "training", lambda self, n: Supervised(4, n, self.peak, self.min_area, self.bf16)
        )
        alone = stepclr.finetune(run, train, test, 3, draws=2, seed=5)
        evaluated = stepclr.evaluate(run, train, test, 3, draws=2, seed=5, probe=(), baselines=(), finetune=True)
    assert evaluated.rows == alone.rows


def test_one_budget_makes_no_curve(run: Path, labeled: Path) -> None:
    (run / "evaluation.png").write_bytes(b"of an earlier evaluation")
    words = ["--labels-per-class", "2", "--draws", "1", "--baselines", "none", "--probe", "knn"]
    assert call("evaluate", run, "--train", labeled / "train", "--test", labeled / "test", *words) == 0
    assert not (run / "evaluation.png").exists()


def test_the_curve_has_a_line_a_method_and_a_tick_a_budget() -> None:
    budgets: list[tuple[str, int | str, float, float | None]] = [
        ("simclr", "all", 0.9, None), ("simclr", 1, 0.5, 0.1), ("simclr", 10, 0.7, 0.05),
        ("knn", 10, 0.6, 0.0), ("knn", "all", 0.8, None),
    ]  # fmt: skip
    rows = [Score(method, budget, mean, std, [mean]) for method, budget, mean, std in budgets]
    test = {"source": "photos/", "images": 50}
    scores = Scores(rows, {"classes": ["a", "b"], "train": {"images": 60}, "test": test, "draws": 5})
    (axes,) = label_chart(scores).axes
    assert axes.get_xscale() == "log"
    ticks = dict(zip(axes.get_xticks(), (label.get_text() for label in axes.get_xticklabels()), strict=True))
    assert ticks == {1: "1", 10: "10", 30: "all"}
    names = [bars.get_label() for bars in axes.containers]
    lines = [np.asarray(line.get_xydata()).tolist() for line in axes.get_lines() if line.get_marker() in ("o", "P")]
    drawn = dict(zip(names, lines, strict=True))
    assert drawn == {"simclr": [[1, 0.5], [10, 0.7], [30, 0.9]], "knn": [[10, 0.6], [30, 0.8]]}
    assert "photos/" in axes.get_title()
    assert axes.get_legend() is not None


def test_a_share_stands_where_its_labels_are() -> None:
    """Of a share, each class has at least one label."""
    rows = [Score("simclr", share, 0.5, None, [0.5], labels) for share, labels in (("1%", 2), ("10%", 6), ("all", 60))]
    scores = Scores(rows, {"classes": ["a", "b"], "train": {"images": 60}})
    assert [labels for labels, _, _ in label_curves(scores)["simclr"]] == [1, 3, 30]


def test_names_are_text_in_the_chart() -> None:
    names = ["_runs/$a_$", "simclr"]
    rows = [Score(name, labels, 0.5, None, [0.5]) for name in names for labels in (1, 2)]
    protocol = {"run": "r", "classes": ["a", "b"], "train": {"images": 60}, "draws": 1, "methods": {names[0]: {}}}
    figure = label_chart(Scores(rows, protocol | {"test": {"source": "$x_$y/", "images": 5}}))
    figure.savefig(io.BytesIO())
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == names


def test_paired_lines_compare_what_saw_the_same_labels() -> None:
    def row(method: str, *values: float) -> Score:
        return Score(method, 5, 0.0, None, list(values))

    rows = [row("scratch", 0.1, 0.2), row("simclr", 0.3, 0.3), row("finetuned", 0.4, 0.1), row("knn", 0.0, 0.0)]
    assert list(paired_lines(Scores(rows, {"run": "runs/a"}))) == [
        "simclr - scratch with 5 labels per class: +15.0 points, standard error 5.0, above in 2 of 2 draws",
        "finetuned - scratch with 5 labels per class: +10.0 points, standard error 20.0, above in 1 of 2 draws",
        "the standard errors cover the draws of the labels, not other test images or another pretraining seed",
    ]
    assert not list(paired_lines(Scores(rows[:1], {"run": "runs/a"})))


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_the_rate_of_every_weight_follows_the_cosine(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are two or three groups of weights: the rate of each falls."""
    seen: list[list[float]] = []
    kind: Any = {"sgd": SGD, "lars": LARS}[optimizer]
    step = kind.step

    def watched(self: Optimizer, *rest: object) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *rest)

    monkeypatch.setattr(kind, "step", watched)
    classifier = Classifier(build_encoder("test_resnet", "small-stride2", size=28), [str(k) for k in range(10)])
    how = Supervised(4, 32, 0.2, 0.4, bf16=False, optimizer=optimizer)
    train_classifier(classifier, stepclr.open_images("sample:train", limit=64), how, seed=0)
    assert seen == [[0.2 * lr_multiplier(k, 4, 0)] * (3 if optimizer == "lars" else 2) for k in range(4)]


def test_lars_fine_tunes_as_simclrv2_does() -> None:
    """Peak rate 0.005 sqrt(B); BatchNorm and the linear layer do not have the trust ratio."""
    how = FinetuneSettings(epochs=1, batch_size=64, optimizer="lars").training(640)
    assert how.rate == pytest.approx(0.005 * 64**0.5)
    torch.manual_seed(0)
    classifier = Classifier(build_encoder("test_resnet", "small-stride2", size=28), [str(k) for k in range(10)])
    before = {name: weight.detach().clone() for name, weight in classifier.named_parameters()}
    train_classifier(classifier, stepclr.open_images("sample:train", limit=64), replace(how, steps=1), seed=0)
    for name, weight in classifier.named_parameters():
        moved = (weight - before[name]).norm().item()
        if (
            weight.ndim > 1 and moved and not name.startswith("linear")
        ):  # a step is rate times trust 0.001 times the weights' length
            assert moved == pytest.approx(how.rate * 0.001 * before[name].norm().item(), rel=1e-3), name
    # The trust ratio would have moved the linear layer by as little; its plain step is rate times the gradient.
    moved = (classifier.linear.weight - before["linear.weight"]).norm().item()
    assert moved > 20 * how.rate * 0.001 * before["linear.weight"].norm().item()
    with pytest.raises(StepclrError, match="Did you mean 'lars'"):
        stepclr.finetune("nowhere", "sample:train", optimizer="larz")


@pytest.mark.parametrize(
    ("head", "kept_layers"),
    [
        ("[32,16]", "1"),
        ('"32-16"', "-1"),
        ('"32-16"', "3"),
        ('"32-16"', "0"),
        ('"1099511627776-16"', "1"),
        ('"2000000-16"', "1"),
        ('"32-16:plane"', "1"),
        ('"32-16:plain"', "1"),
        ('"32"', "1"),
        ('""', "1"),
    ],
)
def test_a_classifier_file_with_an_impossible_head_is_refused(head: str, kept_layers: str, tmp_path: Path) -> None:
    """Found by altering files at random."""
    encoder = build_encoder("test_resnet", "small-stride2", size=28)
    path = tmp_path / "classifier.safetensors"
    save_classifier(Classifier(encoder, ["a", "b"], "32-16", 1), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {"head": head, "kept_layers": kept_layers}
    save_file(load_file(path), path, metadata)
    with pytest.raises(StepclrError, match=r"is corrupt|does not fit the network"):
        load_classifier(path)


@pytest.mark.parametrize("zero_init", [False, True])
def test_the_linear_layer_starts_at_0_where_it_is_asked_to(zero_init: bool) -> None:
    train = stepclr.open_images("sample:train", limit=40)
    initial = InitialWeights(build_encoder("test_resnet", "small-stride2", size=28))
    settings = FinetuneSettings(epochs=1, lr=1e-20, zero_init=zero_init)  # it ends where it starts
    classifier = finetuned(initial, train, Split("all", 0, np.arange(40), seed=0), settings)
    for weight in classifier.linear.parameters():
        assert (weight.abs().max() < 1e-10) == zero_init
    assert settings.describe()["linear layer starts at"] == ("0" if zero_init else "torch's default, random")


def test_the_name_of_an_encoder_is_folded_in_a_narrow_table_and_never_cut() -> None:
    name = "timm:tf_efficientnet_lite0.in1k"
    rows = [Score(method, 5, 0.5, 0.1, [0.4, 0.6]) for method in ("pixels", name)]
    shown = io.StringIO()
    Console(width=40, file=shown).print(score_table(Scores(rows, {"run": "runs/a", "test": {"images": 9}})))
    cells = [line.split("│")[2].strip() for line in shown.getvalue().splitlines() if line.startswith("│")]
    assert "".join(cells) == f"pixels{name}"
