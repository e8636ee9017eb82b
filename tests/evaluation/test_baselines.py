"""The baselines of step 7: pixels, random initialization, supervised from scratch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small import checksum, run_config, untrained_run
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Subset
from torchvision.transforms.v2 import functional as tv

import stepclr
from stepclr.config import RunConfig
from stepclr.data.images import ImageSet
from stepclr.data.order import epoch_order
from stepclr.data.sources import open_images
from stepclr.device import side_by_side, torch_threads
from stepclr.evaluation import baselines, methods
from stepclr.evaluation.baselines import RATES, Scratch
from stepclr.evaluation.linear import linear_evaluation
from stepclr.evaluation.prepare import all_logits, features, prepare
from stepclr.evaluation.splits import Split, label_splits, mix_seed
from stepclr.model.build import build_encoder
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.model.files import save_encoder
from stepclr.pretraining import classifier
from stepclr.views.keys import view_keys


def striped(n: int, seed: int, side: int = 16) -> ImageSet:
    """Two classes of noisy images, with horizontal and with vertical stripes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    waves = np.asarray(np.mgrid[:side, :side])[labels]
    images = 128 + 60 * np.sin(waves[..., None]) + 30 * generator.normal(size=(n, side, side, 3))
    return open_images((images.clip(0, 255).astype(np.uint8), labels))


@pytest.fixture
def encoder() -> Encoder:
    return new_encoder()


def new_encoder(size: int = 16, name: str = "test_resnet", stem: str = "small-stride2") -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_encoder(name, stem, size=size).eval()


# pixels


def test_small_pixels_are_those_of_preprocess(encoder: Encoder) -> None:
    images = striped(5, 0, side=20)
    h = features(baselines.pixels(encoder), images)
    expected = encoder.preprocess(images.read(range(5)))
    assert expected.shape == (5, 3, 16, 16)
    np.testing.assert_array_equal(h, expected.flatten(1))


def test_large_pixels_are_reduced_to_32_antialiased() -> None:
    encoder, images = new_encoder(size=96), striped(3, 0, side=96)
    h = features(baselines.pixels(encoder), images)
    x = encoder.preprocess(images.read(range(3)))
    expected = tv.resize(x, [32, 32], tv.InterpolationMode.BILINEAR, antialias=True)
    np.testing.assert_allclose(h, expected.flatten(1), atol=1e-6)


# random


def test_a_fresh_encoder_has_its_own_weights_and_the_same_preprocessing(encoder: Encoder) -> None:
    encoder.mean.fill_(0.4)
    encoder.std.fill_(0.2)
    generator = torch.random.get_rng_state()
    one, again, other = (baselines.random_encoder(encoder, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert (one.name, one.stem, one.size) == (encoder.name, encoder.stem, encoder.size)
    assert torch.equal(one.mean, encoder.mean)
    assert torch.equal(one.std, encoder.std)
    assert checksum(one) == checksum(again)
    assert len({checksum(made) for made in (encoder, one, other)}) == 3


def naive_statistics(encoder: Encoder, batch: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of what each BatchNorm receives, written out."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].double().transpose(0, 1).flatten(1)
            mean = x.sum(1) / x.shape[1]
            seen[name] = mean, (x - mean[:, None]).square().sum(1) / (x.shape[1] - 1)

        return note

    norms = {name: module for name, module in encoder.named_modules() if isinstance(module, _BatchNorm)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(hook(name))
    encoder.train()
    with torch.no_grad():
        encoder(batch)
    return seen


@pytest.mark.parametrize("most", [9, 256])
def test_batchnorm_statistics_are_those_of_one_batch_of_train(
    encoder: Encoder, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "STATISTICS_IMAGES", most)
    images = striped(21, 0)
    sample = epoch_order(0, 0, 21)[:most]
    assert set(images.labels[sample]) == {0, 1}
    expected = naive_statistics(new_encoder(), encoder.preprocess(images.read(sample)))
    baselines.set_batchnorm_statistics(encoder, images)
    assert not any(module.training for module in encoder.modules())
    norms = {name: module for name, module in encoder.named_modules() if isinstance(module, _BatchNorm)}
    assert norms.keys() == expected.keys()
    for name, (mean, variance) in expected.items():
        torch.testing.assert_close(norms[name].running_mean, mean.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norms[name].running_var, variance.float(), rtol=1e-4, atol=1e-5)
    weights = dict(new_encoder().named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in encoder.named_parameters())


def test_dropout_rests_while_statistics_are_taken(encoder: Encoder) -> None:
    class Loud(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return x

    encoder.body.layer1.append(Loud())  # type: ignore[operator, union-attr]
    baselines.set_batchnorm_statistics(encoder, striped(6, 0))


def test_a_network_without_batchnorm_needs_no_pass() -> None:
    encoder = new_encoder(size=32, name="test_vit", stem="own")
    before = checksum(encoder)
    baselines.set_batchnorm_statistics(encoder, open_images(np.zeros((1, 4, 4, 3), np.uint8)).take([]))
    assert checksum(encoder) == before


def task_of(encoder: Encoder) -> methods.Task:
    images = prepare(encoder, striped(24, 1), striped(16, 2), [2, 4], 2, 5)
    return methods.Task(encoder, {}, images, 5, 4, 20, 0.1, min_area=0.2, bf16=False, flip=0.5)


def test_random_is_one_prepared_initialisation_a_draw_for_all_budgets(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(encoder)
    seen: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def spy(h: NDArray[np.float32], labels: Any, h_test: NDArray[np.float32], seed: int) -> Any:
        seen.append((h, h_test))
        return linear_evaluation(h, labels, h_test, seed)

    monkeypatch.setattr(methods, "linear_evaluation", spy)
    random = methods.METHODS["random"](task)
    for split in task.images.splits:
        fit = random.predict(split)
        assert callable(fit)
        fit()
    for (h, h_test), split in zip(seen, task.images.splits, strict=True):
        made = baselines.random_encoder(encoder, mix_seed(5, split.number))
        baselines.set_batchnorm_statistics(made, task.images.train)
        np.testing.assert_allclose(h, features(made, task.images.train)[split.indices], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(h_test, features(made, task.images.test))
    assert seen[0][1] is seen[1][1]  # computed once
    assert not np.allclose(seen[0][1], seen[2][1])


# scratch


def make(encoder: Encoder, steps: int, **changed: Any) -> Scratch:
    given: dict[str, Any] = {"train": striped(80, 1), "test": striped(40, 2), "min_area": 0.5, "bf16": False} | changed
    return Scratch(encoder, steps=steps, **given)


def first_split(made: Scratch, labels_per_class: int) -> Split:
    return label_splits(made.train.labels, ["a", "b"], [labels_per_class], 1, 0)[0]


def test_scratch_learns_what_can_be_learnt(encoder: Encoder) -> None:
    made = make(encoder, steps=40)
    logits = all_logits(made.fit(first_split(made, 20).indices, 0.03, 0, made.steps), made.test)
    assert (logits.argmax(1).numpy() == made.test.labels).mean() > 0.9


def test_scratch_takes_batches_of_32_by_a_cosine_to_0_of_views_of_their_keys(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(encoder, steps=5)
    rows = first_split(made, 35).indices  # 70 images: two batches an epoch
    seen: list[tuple[int, int, list[int]]] = []
    rates: list[float] = []
    original = torch.optim.SGD.step

    def spy(seed: int, epoch: int, indices: Any) -> Any:
        seen.append((seed, epoch, list(indices)))
        return view_keys(seed, epoch, indices)

    def step(self: torch.optim.SGD, *args: Any) -> Any:
        group, excluded = self.param_groups
        assert not excluded["params"]
        rates.append(group["lr"])
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)
        return original(self, *args)

    monkeypatch.setattr(classifier, "view_keys", spy)
    monkeypatch.setattr(torch.optim.SGD, "step", step)
    made.fit(rows, 0.1, seed=9, steps=5)
    assert [(seed, epoch, len(at)) for seed, epoch, at in seen] == [(9, step // 2, 32) for step in range(5)]
    for first, second in ((0, 1), (2, 3)):
        assert len(set(seen[first][2] + seen[second][2])) == 64
    assert seen[0][2] != seen[2][2]
    cosine = [0.05 * (1 + np.cos(np.pi * step / 5)) for step in range(5)]
    np.testing.assert_allclose(rates, cosine)


def test_scratch_is_what_it_was_before_it_shared_its_loop(encoder: Encoder) -> None:
    made = make(encoder, steps=12)
    found = all_logits(made.fit(first_split(made, 20).indices, 0.03, 7, made.steps), made.test)[:3]
    # Other processors round differently, and twelve steps multiply it.
    expected = torch.tensor([[0.41688, -0.77411], [0.32741, -0.62652], [0.43516, -0.79876]])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def test_scratch_is_a_function_of_its_arguments(encoder: Encoder) -> None:
    made = make(encoder, steps=3)
    rows = first_split(made, 5).indices
    torch.manual_seed(1)
    one = checksum(made.fit(rows, 0.03, 0, 3))
    torch.manual_seed(2)
    assert checksum(made.fit(rows, 0.03, 0, 3)) == one
    assert checksum(made.fit(rows, 0.03, 1, 3)) != one
    assert checksum(made.fit(rows, 0.1, 0, 3)) != one


def test_scratch_is_tested_in_eval_mode(encoder: Encoder) -> None:
    made = make(encoder, steps=2)
    model = made.fit(first_split(made, 5).indices, 0.03, 0, made.steps)
    before = checksum(model)
    logits = all_logits(model, made.test)
    assert checksum(model) == before
    torch.testing.assert_close(all_logits(model, made.test.take([3])), logits[3:4])


class Fake(Scratch):
    """Scratch whose classifiers are their rates."""

    def fit(self, rows: Any, rate: float, seed: int, steps: int) -> Any:  # noqa: ARG002
        fitted.append((rate, steps, sorted(rows.tolist())))
        return rate


fitted: list[tuple[float, int, list[int]]] = []


@pytest.mark.parametrize(
    ("outcome", "rate"),
    [
        ({0.01: (2, 1.0), 0.03: (2, 1.0), 0.1: (1, 0.1)}, 0.1),  # most right, though with the larger loss
        ({0.01: (1, 1.0), 0.03: (1, 0.5), 0.1: (1, 5.0)}, 0.03),  # equally many: the least log-loss
        ({0.01: (1, 1.0), 0.03: (1, np.nan), 0.1: (1, np.inf)}, 0.01),  # diverged
    ],
)
def test_the_rate_is_chosen_on_two_folds_of_the_first_draw_once_a_budget(
    encoder: Encoder, outcome: dict[float, tuple[int, float]], rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(rate: Any, images: ImageSet, *_: Any) -> Tensor:
        """As many held-out rows right, and at such a loss, as the outcome says of the rate."""
        wrong, scale = outcome[rate]
        sign = torch.from_numpy(images.labels * 2 - 1).double()
        sign[:wrong] *= -1
        return torch.stack([-sign, sign], 1) * scale

    monkeypatch.setattr(baselines, "all_logits", told)
    fitted.clear()
    made = Fake(encoder, striped(40, 1), striped(8, 2), steps=1000, min_area=0.2, bf16=False)
    splits = label_splits(made.train.labels, ["a", "b"], [5, 1], 3, 0)
    made.decide(splits)
    choosing = fitted.copy()
    assert [(tried, steps) for tried, steps, _ in choosing] == [(tried, 125) for tried in RATES for _ in range(2)]
    for (_, _, one), (_, _, other) in zip(choosing[::2], choosing[1::2], strict=True):
        assert sorted(one + other) == splits[0].indices.tolist()
    assert [made(split).chosen for split in splits] == [rate, 0.03] * 3
    assert fitted[len(choosing) :] == [
        (chosen, 1000, split.indices.tolist()) for split, chosen in zip(splits, [rate, 0.03] * 3, strict=True)
    ]


@pytest.mark.parametrize(
    ("config", "bf16", "min_area"), [(None, False, 0.2), (run_config(precision="bf16", min_area=0.4), True, 0.4)]
)
def test_precision_and_crop_are_the_run_s_own(
    encoder: Encoder, config: RunConfig | None, bf16: bool, min_area: float, tmp_path: Path
) -> None:
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    if config:
        config.write(tmp_path)
    scores = stepclr.evaluate(tmp_path, striped(8, 1), striped(8, 2), 1, 1, baselines="scratch", scratch_steps=1)
    settings = scores.protocol["methods"]["scratch"]
    assert settings["precision"] == ("bf16" if bf16 else "fp32")
    assert settings["views"] == f"crop (area from {min_area}) and flip"


def test_bf16_trains_under_autocast_and_scores_in_float32(encoder: Encoder) -> None:
    rows = np.arange(8)
    half, full = (make(encoder, steps=2, bf16=bf16) for bf16 in (True, False))
    models = half.fit(rows, 0.03, 0, 2), full.fit(rows, 0.03, 0, 2)
    assert checksum(models[0]) != checksum(models[1])
    assert {weight.dtype for weight in models[0].parameters()} == {torch.float32}
    assert all_logits(models[0], half.test).dtype == torch.float32
    # A rounded h would have eight bits only.
    h = features(models[0].encoder, half.test)
    assert not torch.equal(torch.from_numpy(h).bfloat16().float(), torch.from_numpy(h))


def test_networks_trained_side_by_side_are_those_trained_one_by_one(encoder: Encoder) -> None:
    splits = label_splits(striped(80, 1).labels, ["a", "b"], [4], 3, 0)
    alone, together = make(encoder, steps=3), make(encoder, steps=3, each=side_by_side)
    alone.decide(splits)
    expected = [alone(split) for split in splits]
    generator = torch.random.get_rng_state()
    with torch_threads(3):  # one for each of three networks
        together.decide(splits)
        fits = list(side_by_side(together, splits))
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert together.rates == alone.rates
    for fit, one in zip(fits, expected, strict=True):
        np.testing.assert_array_equal(fit.ranked, one.ranked)


def test_only_small_encoders_whose_training_draws_nothing_are_trained_side_by_side(encoder: Encoder) -> None:
    task = task_of(encoder)
    assert methods.METHODS["scratch"](task).each is side_by_side
    assert methods.METHODS["finetuned"](task).each is side_by_side
    own = replace(task, encoder=Encoder(nn.Flatten(), "module:Net", "own", 16, num_features=768))
    large = replace(task, encoder=new_encoder(size=96))
    items = open_images(Subset(striped(4, 0), range(4)))  # a Dataset's are never read by two threads
    as_read = replace(task, images=replace(task.images, train=items))
    for each in (own, large, as_read):
        assert methods.METHODS["scratch"](each).each is map


def test_another_encoder_reads_the_images_in_its_own_range(tmp_path: Path) -> None:
    """And weights without a range as the run does; a range that was given holds for all."""
    generator = np.random.default_rng(0)
    for i in range(16):
        path = tmp_path / "photos" / ("dark", "light")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 3000, (16, 16), np.uint16)).save(path)
    ranges = {"a": (0.0, 4000.0), "b": (0.0, 1000.0), "c": None}
    for seed, (name, value_range) in enumerate(ranges.items()):
        encoder = stepclr.load_encoder(untrained_run(tmp_path, seed=seed))
        encoder.value_range = value_range
        save_encoder(encoder, tmp_path / name / "encoder.safetensors")
    name_of = {checksum(stepclr.load_encoder(tmp_path / name)): name for name in ranges}
    seen: dict[str, float] = {}

    def look(encoder: Encoder, images: ImageSet, **options: Any) -> Any:
        seen.setdefault(name_of[checksum(encoder)], images.read([0])[0].float().mean().item())
        return represent(encoder, images, **options)

    def seen_by(name: str, others: list[str], **reading: Any) -> dict[str, float]:
        seen.clear()
        images = stepclr.open_images(tmp_path / "photos", **reading)
        options: dict[str, Any] = {"labels_per_class": 2, "draws": 1, "probe": "linear"}
        stepclr.evaluate(tmp_path / name, images, holdout=0.5, baselines=[tmp_path / x for x in others], **options)
        return dict(seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepclr.evaluation.prepare.represent", look)
        seen_of_a = seen_by("a", ["b", "c"])
        assert seen_of_a["b"] == seen_by("b", [])["b"] > seen_of_a["a"] == seen_of_a["c"]
        given = seen_by("a", ["b", "c"], value_range=(0, 2000))
        assert given["a"] == given["b"] == given["c"] > seen_of_a["a"]
