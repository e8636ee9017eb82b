"""Pretraining with every loss and policy, any number of views, balanced batches, large encoders; distillation."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import one_step

import stepclr
from stepclr.cli import main
from stepclr.config import PretrainConfig
from stepclr.data.order import balanced_order
from stepclr.model.files import load_classifier, save_encoder
from stepclr.pretraining.batches import batches
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.pretraining.model import build_model
from stepclr.pretraining.resolve import changed, resolve
from stepclr.recipes import recipe_config
from stepclr.views.keys import view_keys
from stepclr.views.ops import ColorJitter, Warp
from stepclr.views.views import Views

SMALL: dict[str, Any] = {
    "encoder": "test_resnet",
    "stem": "small-stride2",
    "epochs": 2,
    "batch_size": 16,
    "progress": False,
    "limit": 70,
}


def small_run(out: Path, source: Any = "sample:train", **options: Any) -> stepclr.Run:
    return stepclr.pretrain(source, out, **{**SMALL, **options})


def weights(run: stepclr.Run) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run.folder / "checkpoint")[-1])


def same(a: stepclr.Run, b: stepclr.Run) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> stepclr.Run:
    """A supervised run: its classifier teaches."""
    return small_run(tmp_path_factory.mktemp("runs") / "teacher", loss="cross-entropy", epochs=6, limit=200)


LOSSES: dict[str, dict[str, Any]] = {
    "four views": {"views": 4},
    "three views and labels": {"views": 3, "loss": "supcon", "normalize_h": True},
    "decoupled": {"loss": "dcl", "views": 3},
    "balanced": {"loss": "supcon", "balanced": True},
    "cross-entropy": {"loss": "cross-entropy"},
    "cross-entropy of one view": {"loss": "cross-entropy", "views": 1, "policy": "crop"},
    "distill": {"loss": "distill", "policy": "crop", "views": 1, "temperature": 2.0},
    "activations computed again": {"checkpoint_activations": True},
    "strengths of each view": {"strength": (1.0, 0.2)},
    "simaugment and more": {"policy": "simaugment+VerticalFlip+rotate(30)+Equalize+HorizontalFlip(0)"},
}


@pytest.mark.parametrize("case", LOSSES)
def test_every_kind_of_run_resumes_bit_for_bit(case: str, teacher: stepclr.Run, tmp_path: Path) -> None:
    options = {**LOSSES[case], **({"teacher": str(teacher.folder)} if case == "distill" else {})}
    whole = small_run(tmp_path / "whole", **options)
    shutil.copytree(whole.folder, tmp_path / "run")
    checkpoints(tmp_path / "run" / "checkpoint")[-1].unlink()
    assert same(whole, stepclr.pretrain("sample:train", tmp_path / "run", resume=True, progress=False))


@pytest.mark.parametrize("views", [2, 4])
def test_the_first_loss_of_many_views_by_hand(views: int, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", epochs=1, limit=16, precision="fp32", views=views, head="32-16")
    torch.manual_seed(0)
    encoder = stepclr.build_encoder("test_resnet", "small-stride2", size=28).train()
    head = stepclr.ProjectionHead(encoder.num_features, 32, 16).train()
    images = stepclr.open_images("sample:train", limit=16)
    x = Views("simclr", 28, views=views)(images.read(range(16)), view_keys(0, 0, range(16)))
    z = torch.nn.functional.normalize(head(encoder(x.flatten(0, 1))).double())
    tau = run.config.temperature
    total = 0.0
    for i in range(len(z)):
        others = torch.stack([torch.exp(z[i] @ z[k] / tau) for k in range(len(z)) if k != i]).sum()
        pairs = [torch.log(torch.exp(z[i] @ z[k] / tau) / others) for k in range(i % 16, len(z), 16) if k != i]
        total -= float(torch.stack(pairs).mean().detach())
    assert run.metrics[0]["loss"] == pytest.approx(total / len(z), rel=1e-4)


def test_a_list_of_ops_is_a_policy(tmp_path: Path) -> None:
    ops = [ColorJitter(0.2), Warp(p=1.0), ColorJitter(0.9)]
    run = small_run(tmp_path / "run", policy=ops)
    assert run.config.policy.startswith("ColorJitter(strength=0.2, p=0.8)+Warp(p=1.0)+")
    named = small_run(tmp_path / "named", policy=run.config.policy)
    assert same(run, named)
    assert not same(run, small_run(tmp_path / "other", policy=ops[:2]))


def test_supcon_without_labels_is_simclr(tmp_path: Path) -> None:
    """Mixed sets go through one loss: a set with one label for each of two classes has SimCLR's positives alone."""
    images = stepclr.open_images("sample:train", limit=70)
    labels = np.full(70, -1)
    labels[[3, 5]] = 0, 1
    images.labels = labels
    mixed = small_run(tmp_path / "mixed", images, loss="supcon", temperature=0.3, limit=None)
    plain = small_run(tmp_path / "plain", images, temperature=0.3, limit=None)
    assert same(mixed, plain)


def test_activations_computed_again_change_nothing(tmp_path: Path) -> None:
    plain = small_run(tmp_path / "plain", precision="fp32")
    again = small_run(tmp_path / "again", precision="fp32", checkpoint_activations=True)
    assert same(plain, again)  # BatchNorm's statistics too, though its forward pass runs twice
    assert again.config.checkpoint_activations


def test_h_of_unit_norm_is_stored_with_the_encoder(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", loss="supcon", normalize_h=True)
    h = stepclr.embed(run, "sample:test")
    np.testing.assert_allclose(np.linalg.norm(h, axis=1), 1, rtol=1e-5)
    bare = stepclr.embed(small_run(tmp_path / "bare", loss="supcon"), "sample:test")
    assert np.linalg.norm(bare, axis=1).std() > 1e-3


def test_cross_entropy_learns_its_labels_and_leaves_a_classifier(teacher: stepclr.Run) -> None:
    classifier = load_classifier(teacher)
    images = stepclr.open_images("sample:train", limit=200)
    with torch.no_grad():
        predicted = classifier(classifier.encoder.preprocess(images.read(range(200)))).argmax(1)
    assert classifier.classes == images.classes
    assert (predicted.numpy() == images.labels).mean() > 0.2  # ten classes
    trained = weights(teacher)
    assert torch.equal(trained["model.head.weight"], classifier.linear.weight)
    assert "top1" in teacher.metrics[-1]
    assert "contrastive_top1" not in teacher.metrics[-1]


def test_a_student_comes_to_predict_what_its_teacher_does(teacher: stepclr.Run, tmp_path: Path) -> None:
    run = stepclr.distill(
        teacher, "sample:unlabeled", tmp_path / "run", student="test_resnet", stem="small-stride2", limit=600,
        epochs=4, batch_size=32, progress=False,
    )  # fmt: skip
    images = stepclr.open_images("sample:test", limit=300)
    answers = []
    for classifier in (load_classifier(teacher), load_classifier(run)):
        with torch.no_grad():
            answers.append(classifier(classifier.encoder.preprocess(images.read(range(300)))).argmax(1))
    assert (answers[0] == answers[1]).double().mean() > 0.5
    assert load_classifier(run).classes == load_classifier(teacher).classes
    assert run.metrics[0]["loss"] > run.metrics[-1]["loss"]
    resumed = stepclr.distill(teacher, "sample:unlabeled", tmp_path / "run", resume=True, progress=False)
    assert same(resumed, run)
    with pytest.raises(stepclr.StepclrError, match="was started with teacher"):
        stepclr.distill(tmp_path / "another", "sample:unlabeled", tmp_path / "run", resume=True, progress=False)


def test_a_student_sees_the_crops_and_flips_of_its_teacher(tmp_path: Path) -> None:
    teacher = small_run(tmp_path / "teacher", loss="cross-entropy", policy="domain:document", epochs=1)
    of_teacher = load_classifier(teacher)
    assert (of_teacher.min_area, of_teacher.flip) == (0.5, 0)
    options = {"student": "test_resnet", "limit": 64, "batch_size": 32, "epochs": 1, "progress": False}
    run = stepclr.distill(teacher, "sample:unlabeled", tmp_path / "run", **options)  # type: ignore[arg-type]
    assert (run.config.min_area, stepclr.Views(run.config.policy).flip) == (0.5, 0)
    student = load_classifier(run)  # which may teach another
    assert (student.min_area, student.flip) == (0.5, 0)


def test_the_command_line_distills(teacher: stepclr.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", str(teacher.folder), "sample:unlabeled", "--student", "test_resnet", "--epochs", "1"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--limit", "64", "--batch-size", "32", "--out", str(tmp_path / "run")])
    assert not stop.value.code
    assert "stepclr predict" in capsys.readouterr().out
    assert (tmp_path / "run" / "classifier.safetensors").exists()


def test_the_order_of_a_balanced_epoch() -> None:
    labels = np.array([0] * 60 + [1] * 20 + [2] * 10 + [-1] * 30)
    places = balanced_order(labels, seed=0, epoch=0)
    assert len(places) == len(set(places.tolist())) == 120
    drawn = labels[places % 120]
    assert [int((drawn == label).sum()) for label in (-1, 0, 1, 2)] == [30, 30, 30, 30]
    for start in range(0, 120, 24):  # and so is each batch
        counts = [int((drawn[start : start + 24] == label).sum()) for label in (-1, 0, 1, 2)]
        assert max(counts) - min(counts) <= 2
    rare = places[drawn == 2]  # ten images, three times each, with other keys each time
    assert np.bincount(rare % 120)[80:90].tolist() == [3] * 10
    assert len(set(view_keys(0, 0, rare).tolist())) == 30
    assert not np.array_equal(places, balanced_order(labels, seed=0, epoch=1))
    left_out = set(range(60)) - set(places.tolist())
    assert left_out != set(range(60)) - set(balanced_order(labels, seed=0, epoch=1).tolist())


def test_a_balanced_feed_hands_out_the_images_of_its_places() -> None:
    images = stepclr.open_images("sample:train", limit=40)
    images.labels = np.where(np.arange(40) < 36, 0, 1)
    for pixels, labels, samples in batches(images, seed=0, epoch=0, batch_size=8, start=0, balanced=True):
        assert torch.equal(torch.as_tensor(pixels), torch.as_tensor(images.read(samples % 40)))
        assert labels.tolist() == images.labels[samples % 40].tolist()
        assert (labels == 1).sum() == 4


def test_linear_epochs_are_supcons_second_stage(tmp_path: Path) -> None:
    options = {"loss": "supcon", "limit": 200, "epochs": 4}
    one = small_run(tmp_path / "one", **options)
    both = small_run(tmp_path / "both", **options, linear_epochs=6)
    assert same(one, both)
    left, right = load_file(one.folder / "encoder.safetensors"), load_file(both.folder / "encoder.safetensors")
    assert all(torch.equal(left[name], right[name]) for name in left)  # frozen, BatchNorm's statistics included
    classifier = load_classifier(both)
    for name, tensor in classifier.encoder.state_dict().items():
        assert torch.equal(tensor, left[name]), name
    assert not (one.folder / "classifier.safetensors").exists()
    probabilities = stepclr.predict(both, "sample:test").probabilities
    truth = stepclr.open_images("sample:test").labels
    assert (probabilities.argmax(1) == truth).mean() > 0.2  # ten classes, 48 steps, and 36 of the linear layer
    again = stepclr.pretrain("sample:train", both.folder, resume=True, progress=False)
    assert torch.equal(load_classifier(again).linear.weight, classifier.linear.weight)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("sample:unlabeled", {"loss": "cross-entropy"}, "cross-entropy needs labels"),
        ("sample:unlabeled", {"balanced": True}, "balanced needs labels"),
        ("sample:unlabeled", {"linear_epochs": 2}, "linear_epochs needs labels"),
        ("sample:train", {"views": 1}, "views must be at least 2, not 1"),
        ("sample:train", {"loss": "cross-entropy", "linear_epochs": 2}, "leave out linear_epochs"),
        ("sample:train", {"loss": "distill"}, "needs a teacher"),
        ("sample:train", {"strength": (1.0, 0.5, 0.2)}, "strength"),
        ("sample:train", {"policy": "crop", "strength": 1.0}, "strength"),
        ("sample:train", {"warp": 0.5}, "warp"),
        ("sample:train", {"encoder": "test_efficientnet", "stem": "small"}, "is for ResNets"),
    ],
)
def test_settings_that_do_not_go_together(source: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(stepclr.StepclrError, match=message) as caught:
        small_run(tmp_path / "run", source, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_has_no_effect_is_not_taken_from_a_recipe_and_said_of_an_option() -> None:
    sample = recipe_config("sample")
    assert (sample.blur, sample.head, sample.temperature) == (0.5, "512-128", 0.2)
    cropped, lines = changed(sample, {"policy": "domain:xray"})
    assert (cropped.strength, cropped.blur, cropped.head, lines) == (None, None, "512-128", [])
    # A recipe's values are for its own policy: neither for that of a domain nor for ops with values of their own.
    for recipe in ("sample", "cifar10", "imagenette"):
        for domain in ("xray", "document", "microscopy"):
            of_domain, _ = changed(recipe_config(recipe), {"policy": f"domain:{domain}", "blur": 0.1})
            assert (of_domain.min_area, of_domain.strength, of_domain.blur) == (None, None, 0.1)
    written, _ = changed(sample, {"policy": "ColorJitter(strength=0.3)+Blur(p=0.1)"})
    assert (written.strength, written.blur, written.min_area) == (None, None, sample.min_area)
    assert changed(sample, {"policy": sample.policy})[0] == sample
    supervised, lines = changed(sample, {"loss": "cross-entropy"})
    assert (supervised.blur, supervised.head, supervised.temperature, lines) == (0.5, None, None, [])
    assert changed(sample, {"minutes": 2})[0].epochs is None
    _, lines = changed(sample, {"loss": "cross-entropy", "temperature": 0.2, "head": None})
    others = "nt-xent, supcon, dcl, distill"
    assert lines == [f"temperature 0.2 has no effect with the loss cross-entropy: it is for {others}"]
    _, lines = changed(sample, {"loss": "distill", "head": "32-16"})
    assert lines == ["head 32-16 has no effect with the loss distill: it is for nt-xent, supcon, dcl"]


def test_a_teacher_must_be_one(teacher: stepclr.Run, tmp_path: Path) -> None:
    encoder = teacher.folder / "encoder.safetensors"
    for words, options in (
        ("no classifier at", {"teacher": str(tmp_path / "none")}),
        ("is an encoder, not a classifier", {"teacher": str(encoder)}),
        ("takes views of 28 pixels", {"teacher": str(teacher.folder), "size": 32}),
    ):
        with pytest.raises(stepclr.StepclrError, match=words):
            small_run(tmp_path / "run", loss="distill", views=1, **options)
    with pytest.raises(stepclr.StepclrError, match="is a classifier, not an encoder"):
        small_run(tmp_path / "run", weights=str(teacher.folder / "classifier.safetensors"))


@pytest.mark.parametrize("name", ["resnet50", "resnet200", "vit_tiny_patch16_224"])
def test_one_step_of_a_large_encoder(name: str, tmp_path: Path) -> None:
    """A real optimization step at 96 px moves every weight; saved and loaded, the encoder embeds alike."""
    images = stepclr.open_images("sample:train", limit=4)
    config = resolve(PretrainConfig(name, size=96, batch_size=4, precision="fp32"), images)
    torch.manual_seed(0)
    model = build_model(config, images).train()
    encoder = model.encoder
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    views = Views(config.policy, 96)
    keys = view_keys(0, 0, range(4))
    loss, _ = one_step(model, optimizer, config, views, images.read(range(4)), keys, torch.zeros(4).long())
    assert loss.isfinite()
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    # A block's last BatchNorm starts at gamma 0 (as the authors' code has it), so that its branch learns from step 2.
    assert all(".bn" in key or ".conv" in key or "norm" in key for key in still), still
    assert encoder.num_features == {"resnet50": 2048, "resnet200": 2048}.get(name, 192)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = stepclr.load_encoder(tmp_path / "encoder.safetensors")
    x = loaded.preprocess(images.read(range(4)))
    with torch.no_grad():
        assert torch.equal(encoder.eval()(x), loaded(x))


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    run, other = small_run(tmp_path / "run"), small_run(tmp_path / "other", stem="small", head="64-16")
    path = checkpoints(run.folder / "checkpoint")[-1]
    path.write_bytes(checkpoints(other.folder / "checkpoint")[-1].read_bytes())
    with pytest.raises(stepclr.StepclrError, match=f"{path} was saved with a different encoder or head") as caught:
        stepclr.pretrain("sample:train", run.folder, resume=True, progress=False)
    assert "\n" not in str(caught.value)
