"""Named settings: each says where it is from and what it reaches, and can be begun with."""

import re
from pathlib import Path

import pytest

import stepclr
from stepclr.pretraining.resolve import build, settle
from stepclr.recipes import RECIPES, recipe_config

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RESULTS = "\n".join(
    path.read_text() for path in (BENCHMARKS / "RESULTS.md", *sorted((BENCHMARKS / "results").glob("*.md")))
)


def test_the_recipes_that_there_must_be() -> None:
    plain = {"sample", "cifar10", "cifar100", "stl10", "stl10-walk", "imagenette", "imagenet", "paper", "v2"}
    supcon = {f"{name}-supcon" for name in ("sample", "cifar10", "cifar100", "stl10", "imagenette", "imagenet")}
    assert set(RECIPES) == plain | supcon


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_its_result_and_whose_it_is(name: str) -> None:
    text = (RECIPES[name].__doc__ or "").split("\n")[0]
    assert re.search(r"\((not )?(measured|published)", text), text
    for number in re.findall(r"(?<![\d.])\.\d{3}(?=[^)]*\(measured)", text):
        assert number in RESULTS, f"{number} is not in benchmarks/RESULTS.md or benchmarks/results/"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_begun_with(name: str) -> None:
    images = stepclr.open_images("sample:train", limit=8)
    config = settle(recipe_config(name), images)
    model = build(config, images)
    features = model["encoder"].num_features
    assert features == {"resnet50": 2048, "resnet18": 512}.get(config.encoder, 96)
    assert config.normalize_h == (config.loss == "supcon") == (config.linear_epochs > 0) == name.endswith("-supcon")


def test_the_twins_differ_by_their_labels_alone() -> None:
    for name in RECIPES:
        if name.endswith("-supcon") and name != "imagenet-supcon":
            plain, twin = (vars(recipe_config(each)) for each in (name.removesuffix("-supcon"), name))
            differ = {key for key in plain if plain[key] != twin[key]}
            assert differ <= {"loss", "temperature", "normalize_h", "linear_epochs"}


def test_the_papers_settings() -> None:
    """SimCLR App. B.6, SimCLRv2 section 3 and 4.1, SupCon section 4 and 14: what the papers say themselves."""
    paper, v2, supcon = (recipe_config(name) for name in ("paper", "v2", "imagenet-supcon"))
    assert (paper.batch_size, paper.lr, paper.weight_decay, paper.temperature) == (4096, 0.3, 1e-6, 0.1)
    assert (v2.head, v2.lr, v2.lr_scaling) == ("2048-2048-128", 0.1 * 256**0.5, "sqrt")
    assert (supcon.policy, supcon.batch_size, supcon.temperature) == ("autoaugment", 6144, 0.1)
