"""Recipes: each states its source and its result, and can start a run."""

import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import stepclr
from stepclr.config import PretrainConfig
from stepclr.pretraining.model import build_model
from stepclr.pretraining.resolve import resolve, views_of
from stepclr.recipes import RECIPES, recipe_config

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RESULTS = "\n".join(
    path.read_text() for path in (BENCHMARKS / "RESULTS.md", *sorted((BENCHMARKS / "results").glob("*.md")))
)


def test_there_is_every_recipe() -> None:
    own = {"sample", "cifar10", "cifar100", "stl10", "stl10-walk", "imagenette"}
    papers = {"imagenet", "paper", "paper-2x", "paper-4x", "paper-cifar10", "v2"}
    supcon = {f"{name}-supcon" for name in ("sample", "cifar10", "cifar100", "stl10", "imagenette", "imagenet")}
    assert set(RECIPES) == own | papers | supcon | {"resnet200-supcon"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_whether_its_result_was_measured(name: str) -> None:
    text = RECIPES[name].line
    assert re.search(r"\((not measured|measured|published)", text), text
    assert "\n" not in text, "stepclr --help shows one line"


@pytest.mark.parametrize("name", [name for name in RECIPES if "(measured" in RECIPES[name].line])
def test_a_measured_number_is_of_the_recipes_own_settings(name: str) -> None:
    sections = re.split(r"^## ", RESULTS, flags=re.MULTILINE)
    numbers = re.findall(r"\d+\.\d ± \d+\.\d %|\d+\.\d%", RECIPES[name].line)
    quoted = [section for section in sections if all(number in section for number in numbers)]
    commands = [line for section in quoted for line in re.findall(r"^    (.+)$", section, re.MULTILINE)]
    assert numbers
    own = recipe_config(name)
    if minutes := re.search(r"--minutes (\d+)", RECIPES[name].line):
        own = replace(own, epochs=None, minutes=float(minutes[1]))
    assert own in [settings_of(command) for command in commands], f"no command of {name} for {numbers}"


def settings_of(command: str) -> PretrainConfig | None:
    """The settings of a command that pretrains with a recipe."""
    if command == "make demo":
        return recipe_config("sample")
    words = shlex.split(command)
    if words[:2] != ["stepclr", "pretrain"] or "--recipe" not in words:
        return None
    switches = {"--progressive": True, "--no-progressive": False}
    given = dict(zip(*[iter(word for word in words[3:] if word not in switches)] * 2, strict=True))
    config = recipe_config(given["--recipe"])
    for word in words:
        config = replace(config, progressive=switches.get(word, config.progressive))
    kinds = {
        "--epochs": int,
        "--minutes": float,
        "--batch-size": int,
        "--lr": float,
        "--seed": int,
        "--temperature": float,
        "--encoder": str,
        "--head": str,
        "--loss": str,
        "--stem": str,
        "--test-scale": float,
    }
    if "--minutes" in given:
        config = replace(config, epochs=None)
    changes = {option.strip("-").replace("-", "_"): kinds[option](given[option]) for option in given if option in kinds}
    assert given.keys() <= {*kinds, "--recipe", "--out", "--monitor"}, command
    return replace(config, **changes)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_start_a_run(name: str) -> None:
    images = stepclr.open_images("sample:train", limit=8)
    config = resolve(recipe_config(name), images)
    with torch.device("meta"):  # a ResNet-50 4x has 375 million weights
        model = build_model(config, images)
    features = {"test_resnet": 96, "resnet10x0.5": 256, "resnet18": 512, "resnet50x2": 4096, "resnet50x4": 8192}
    assert model.encoder.num_features == features.get(config.encoder, 2048)
    assert (config.loss == "supcon") == (config.linear_epochs > 0) == name.endswith("-supcon")


def differences(name: str, from_name: str) -> dict[str, object]:
    """The settings of one recipe that differ from another's."""
    other = asdict(recipe_config(from_name))
    return {key: value for key, value in asdict(recipe_config(name)).items() if value != other[key]}


@pytest.mark.parametrize("name", ["sample", "cifar10", "stl10", "imagenette"])
def test_supcon_recipes_differ_from_simclr_ones_in_their_labels_only(name: str) -> None:
    changed = differences(f"{name}-supcon", name)
    epochs = changed.pop("linear_epochs")
    changed.pop("temperature", None)
    assert recipe_config(f"{name}-supcon").temperature == 0.1
    assert changed == {"loss": "supcon", "normalize_h": True}
    assert epochs


def lr_of(name: str) -> float:
    """The peak rate as an optimizer gets it."""
    from stepclr.pretraining.optim import scaled_lr

    config = recipe_config(name)
    assert config.lr is not None
    return scaled_lr(config.lr, config.batch_size, config.lr_scaling)


def test_simclrs_settings() -> None:
    """2002.05709 App. B.1, B.6 and B.9, table 6; google-research/simclr: objective.py returns the sum of two means."""
    paper = recipe_config("paper")
    assert (paper.encoder, paper.epochs, paper.batch_size, paper.warmup) == ("resnet50", 1000, 4096, 10)
    assert (paper.optimizer, paper.weight_decay, paper.temperature, paper.loss_scale) == ("lars", 1e-6, 0.1, 2)
    assert (paper.strength, paper.blur, paper.min_area, paper.head) == (1, 0.5, 0.08, "2048-128:reference")
    assert lr_of("paper") == pytest.approx(0.3 * 4096 / 256)
    assert differences("paper-2x", "paper") == {"encoder": "resnet50x2", "head": "4096-128:reference"}
    assert differences("paper-4x", "paper") == {"encoder": "resnet50x4", "head": "8192-128:reference"}
    cifar = {"stem": "small", "size": 32, "strength": 0.5, "blur": 0, "temperature": 0.5, "lr": 1, "batch_size": 1024}
    assert differences("paper-cifar10", "paper") == cifar
    # 94.0% is of that batch, and of a rate and a temperature that the paper gives as grids alone.
    assert "whose best lr and temperature reach 94.0% (not measured)" in RECIPES["paper-cifar10"].line
    assert lr_of("imagenet") == pytest.approx(0.075 * 256**0.5)
    assert differences("imagenet", "paper").keys() == {"lr", "lr_scaling", "epochs", "batch_size"}


def test_simclrv2s_settings() -> None:
    """2006.10029 sections 3 and 4.1: three layers, rate 0.1 sqrt(B), decay 1e-4, warm-up for 5% of 800 epochs."""
    v2 = recipe_config("v2")
    assert (v2.head, v2.weight_decay, v2.epochs, v2.warmup) == ("2048-2048-128:reference", 1e-4, 800, 0.05 * 800)
    assert lr_of("v2") == pytest.approx(0.1 * 4096**0.5)
    assert "MoCo memory" in RECIPES["v2"].line


def test_supcons_settings() -> None:
    """google-research/supcon: supcon_imagenet_resnet50.sh and _resnet200.sh, configs.sh, hparams_flags.py."""
    supcon = recipe_config("imagenet-supcon")
    assert (supcon.policy, supcon.batch_size, supcon.epochs, supcon.warmup) == ("autoaugment", 6144, 350, 12)
    assert (supcon.temperature, supcon.loss_scale, supcon.weight_decay) == (0.1, 0.1, 1e-3)
    assert (supcon.head, supcon.normalize_h, supcon.interpolation) == ("128:reference", True, "bilinear")
    assert (supcon.optimizer, supcon.linear_epochs, round(lr_of("imagenet-supcon"), 6)) == ("lars", 90, 9.6)
    deep = differences("resnet200-supcon", "imagenet-supcon")
    stacked = {"encoder": "resnet200", "policy": "stacked", "strength": 1, "blur": 0.5, "warp": 0}
    assert deep == stacked | {"lr": 0.2, "weight_decay": 1e-4, "epochs": 700, "batch_size": 4096}


def test_supcontrasts_settings() -> None:
    """HobbitLong/SupContrast: README, main_supcon.py, losses.py (base_temperature 0.07), resnet_big.py."""
    simclr = recipe_config("cifar100")
    assert (simclr.encoder, simclr.stem, simclr.epochs, simclr.batch_size) == ("resnet50", "small", 1000, 1024)
    assert (simclr.temperature, simclr.loss_scale, simclr.head) == (0.5, 0.5 / 0.07, "2048-128:plain")
    assert (simclr.optimizer, simclr.weight_decay, lr_of("cifar100")) == ("sgd", 1e-4, 0.5)
    assert (simclr.normalize_h, simclr.min_area, simclr.interpolation) == (False, 0.2, "bilinear")
    labels = {"loss": "supcon", "temperature": 0.1, "loss_scale": 0.1 / 0.07, "linear_epochs": 100}
    assert differences("cifar100-supcon", "cifar100") == labels


@pytest.mark.parametrize(
    ("loss", "size", "temperature"),
    [("nt-xent", 32, 0.2), ("nt-xent", 64, 0.2), ("nt-xent", 96, 0.2), ("dcl", 224, 0.1), ("supcon", 32, 0.1),
     ("supcon", 224, 0.1)],
)  # fmt: skip
def test_the_default_temperature_follows_the_loss_and_the_size(loss: str, size: int, temperature: float) -> None:
    images = stepclr.open_images("sample:train", limit=8)
    assert resolve(PretrainConfig(loss=loss, size=size), images).temperature == temperature
    assert resolve(PretrainConfig(loss=loss, size=size, temperature=0.7), images).temperature == 0.7


@pytest.mark.parametrize("policy", ["simclr", "simaugment", "stacked"])
def test_crops_are_resized_as_asked_or_as_the_policy_has_it(policy: str) -> None:
    images = stepclr.open_images("sample:train", limit=8)
    usual = "bilinear" if policy == "simaugment" else "bicubic"
    assert views_of(resolve(PretrainConfig(policy=policy), images)).interpolation == usual
    asked = PretrainConfig(policy=policy, interpolation="bilinear")
    assert views_of(resolve(asked, images)).interpolation == "bilinear"
