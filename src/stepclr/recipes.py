"""Named configurations, each with its source and the result it is known to reach. Imports no torch."""

from collections.abc import Callable

from stepclr.config import PretrainConfig
from stepclr.errors import choose


def sample() -> PretrainConfig:
    """The bundled sample (Fashion-MNIST, 28 px), two minutes on two cores: what `stepclr demo` runs and measures."""
    return PretrainConfig(
        encoder="test_resnet",
        stem="small-stride2",
        epochs=20,
        batch_size=128,
        lr=0.3,
        temperature=0.2,
        head="512-128",
        strength=1.0,
        blur=0.5,
        min_area=0.4,
    )


def cifar10() -> PretrainConfig:
    """CIFAR-10 (32 px), 10,000 pictures in 8 minutes on two cores: kNN 0.479 (n = 2, benchmarks/RESULTS.md)."""
    return PretrainConfig(
        encoder="resnet18",
        stem="small-stride2",
        epochs=15,
        batch_size=256,
        temperature=0.2,
        min_area=0.2,
    )


def stl10() -> PretrainConfig:
    """STL-10 (96 px), ResNet-18; no source gives a recipe at 96 px, so the views are ImageNet's with a milder crop."""
    return PretrainConfig(encoder="resnet18", epochs=100, batch_size=256, temperature=0.2, min_area=0.2)


def paper() -> PretrainConfig:
    """SimCLR's own ImageNet settings, ResNet-50, 1000 epochs (published: 69.3 linear top-1, 2002.05709 table 6)."""
    return PretrainConfig(
        encoder="resnet50",
        stem="imagenet",
        size=224,
        strength=1.0,
        blur=0.5,
        min_area=0.08,
        temperature=0.1,
        head="2048-128",
        optimizer="lars",
        lr=0.3,
        lr_scaling="linear",
        weight_decay=1e-6,
        warmup=10,
        epochs=1000,
        batch_size=4096,
    )


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "sample": sample,
    "cifar10": cifar10,
    "stl10": stl10,
    "paper": paper,
}


def recipe_config(name: str | None) -> PretrainConfig:
    """The configuration of that name; the defaults for None. Raises StepclrError for an unknown name."""
    return PretrainConfig() if name is None else RECIPES[choose("recipe", name, RECIPES)]()
