"""Recipes: each states its source and its result, and can start a run."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import stepclr
from stepclr.cli.arguments import first_line
from stepclr.config import PretrainConfig
from stepclr.pretraining.model import build_model
from stepclr.pretraining.resolve import resolve
from stepclr.recipes import RECIPES, recipe_config

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RESULTS = "\n".join(
    path.read_text() for path in (BENCHMARKS / "RESULTS.md", *sorted((BENCHMARKS / "results").glob("*.md")))
)


def test_there_is_every_recipe() -> None:
    plain = {"sample", "cifar10", "cifar100", "stl10", "stl10-walk", "imagenette", "imagenet", "paper", "v2"}
    supcon = {f"{name}-supcon" for name in ("sample", "cifar10", "cifar100", "stl10", "imagenette", "imagenet")}
    assert set(RECIPES) == plain | supcon


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_whether_its_result_was_measured(name: str) -> None:
    text = first_line(RECIPES[name])
    assert re.search(r"\((not measured|measured|published)", text), text
    assert "\n" not in (RECIPES[name].__doc__ or ""), "stepclr --help shows one line"


@pytest.mark.parametrize("name", [name for name in RECIPES if "(measured" in first_line(RECIPES[name])])
def test_a_measured_number_is_of_the_recipes_own_settings(name: str) -> None:
    sections = re.split(r"^## ", RESULTS, flags=re.MULTILINE)
    numbers = re.findall(r"\d+\.\d ± \d+\.\d %|\d+\.\d%", first_line(RECIPES[name]))
    quoted = [section for section in sections if all(number in section for number in numbers)]
    commands = [line for section in quoted for line in re.findall(r"^    (.+)$", section, re.MULTILINE)]
    assert numbers
    assert recipe_config(name) in [settings_of(command) for command in commands], f"no command of {name} for {numbers}"


def settings_of(command: str) -> PretrainConfig | None:
    """The settings of a command that pretrains with a recipe."""
    if command == "make demo":
        return recipe_config("sample")
    words = shlex.split(command)
    if words[:2] != ["stepclr", "pretrain"] or "--recipe" not in words:
        return None
    given = dict(zip(words[3::2], words[4::2], strict=True))
    config = recipe_config(given["--recipe"])
    kinds = {"--epochs": int, "--batch-size": int, "--lr": float, "--seed": int}
    changes = {option.strip("-").replace("-", "_"): kinds[option](given[option]) for option in given if option in kinds}
    assert given.keys() <= {*kinds, "--recipe", "--out", "--monitor"}, command
    return replace(config, **changes)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_start_a_run(name: str) -> None:
    images = stepclr.open_images("sample:train", limit=8)
    config = resolve(recipe_config(name), images)
    model = build_model(config, images)
    features = model.encoder.num_features
    assert features == {"resnet50": 2048, "resnet18": 512}.get(config.encoder, 96)
    assert config.normalize_h == (config.loss == "supcon") == (config.linear_epochs > 0) == name.endswith("-supcon")


def test_supcon_recipes_differ_from_simclr_ones_in_their_labels_only() -> None:
    for name in RECIPES:
        if name.endswith("-supcon") and name != "imagenet-supcon":
            plain, labeled = (vars(recipe_config(each)) for each in (name.removesuffix("-supcon"), name))
            differ = {key for key in plain if plain[key] != labeled[key]}
            assert differ <= {"loss", "temperature", "normalize_h", "linear_epochs"}


def test_the_papers_settings() -> None:
    """SimCLR App. B.6, SimCLRv2 sections 3 and 4.1, SupCon sections 4 and 14."""
    paper, v2, supcon = (recipe_config(name) for name in ("paper", "v2", "imagenet-supcon"))
    assert (paper.batch_size, paper.lr, paper.weight_decay, paper.temperature) == (4096, 0.3, 1e-6, 0.1)
    assert (v2.head, v2.lr, v2.lr_scaling) == ("2048-2048-128", 0.1 * 256**0.5, "sqrt")
    assert (supcon.policy, supcon.batch_size, supcon.temperature) == ("autoaugment", 6144, 0.1)
