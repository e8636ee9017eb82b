"""Named configurations. The first line of each says what it is for and what it reaches. Imports no torch.

"measured": these very settings ran here, and benchmarks/results/ has the command and the number. "published": these are
the settings that a paper describes, with the paper's number, and nobody has run them here. "not measured": no number of
these settings is known; a number of similar settings says whose it is and how they differ.
"""

from collections.abc import Callable
from dataclasses import replace

from stepclr.config import PretrainConfig
from stepclr.errors import choose


def sample() -> PretrainConfig:
    """The bundled sample (28 px): linear 76.8 ± 1.4 % with 10 labels per class (measured, 1 run, 5 draws)."""
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
    """CIFAR-10 (32 px), ResNet-18, 20 epochs (not measured)."""
    # With 10 epochs instead, on 10,000 images, kNN reached 47.6% (1 run): benchmarks/results/accuracy.md.
    return PretrainConfig(
        encoder="resnet18",
        stem="small-stride2",
        epochs=20,
        batch_size=128,
        lr=0.25,
        temperature=0.2,
        min_area=0.2,
    )


def cifar100() -> PretrainConfig:
    """CIFAR-100 (32 px), ResNet-50, 1000 epochs (not measured; SupContrast reports 70.7% with a larger loss)."""
    # SupContrast multiplies the loss by tau/0.07, and its head has no BatchNorm.
    return PretrainConfig(
        encoder="resnet50",
        stem="small",
        strength=0.5,
        blur=0.0,
        min_area=0.2,
        temperature=0.5,
        lr=0.125,
        lr_scaling="linear",
        weight_decay=1e-4,
        epochs=1000,
        batch_size=1024,
    )


def stl10() -> PretrainConfig:
    """STL-10 (96 px), ResNet-18, for stl10:train+unlabeled, 100 epochs (not measured)."""
    # No source gives a recipe at 96 px: the views are ImageNet's with a milder crop.
    return PretrainConfig(encoder="resnet18", epochs=100, batch_size=256, temperature=0.2, min_area=0.2)


def stl10_walk() -> PretrainConfig:
    """STL-10, few classes: airplane and car, linear 85.6 ± 1.8 % with 10 labels per class (measured, 1 run)."""
    return replace(stl10(), epochs=60, batch_size=128)


def imagenette() -> PretrainConfig:
    """Imagenette (96 px), ResNet-18, 100 epochs (not measured)."""
    # With 12 epochs of batch 128 on 2,000 images, kNN reached 37.7% (2 runs): benchmarks/results/views.md.
    return replace(stl10(), epochs=100)


def imagenet() -> PretrainConfig:
    """ImageNet on one machine, ResNet-50, batch 256, 100 epochs: linear 62.8% (published, 2002.05709 App. B.1)."""
    return replace(paper(), lr_scaling="sqrt", lr=1.2, epochs=100, batch_size=256)


def paper() -> PretrainConfig:
    """SimCLR's own ImageNet settings, ResNet-50, 1000 epochs: linear 69.3% (published, 2002.05709 table 6)."""
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
        warmup=10.0,
        epochs=1000,
        batch_size=4096,
    )


def v2() -> PretrainConfig:
    """SimCLRv2, ResNet-50, 800 epochs, head of three layers (not measured; the paper has 71.7% with a memory bank)."""
    # 2006.10029 table 1. It fine-tunes from head.1 (57.9% with 1% of the labels); the memory is worth about one point.
    head = "2048-2048-128"
    return replace(paper(), head=head, lr_scaling="sqrt", lr=1.6, weight_decay=1e-4, warmup=40.0, epochs=800)


def sample_supcon() -> PretrainConfig:
    """The sample with labels, for sample:train: linear 77.4%, its own classifier 74.0% (measured, 3 runs)."""
    return _supcon(sample(), linear_epochs=90)


def cifar10_supcon() -> PretrainConfig:
    """CIFAR-10 with labels (not measured)."""
    # With batch 256, lr 0.12 and 15 epochs, kNN reached 51.5% (2 runs): benchmarks/results/accuracy.md.
    return _supcon(cifar10(), linear_epochs=10)


def cifar100_supcon() -> PretrainConfig:
    """CIFAR-100 with labels (not measured; 2004.11362 reports 76.5% with other settings)."""
    return _supcon(cifar100(), linear_epochs=100)


def stl10_supcon() -> PretrainConfig:
    """STL-10 with labels, for stl10:train, with or without the unlabeled images (not measured)."""
    return _supcon(stl10(), linear_epochs=20)


def imagenette_supcon() -> PretrainConfig:
    """Imagenette with labels (not measured)."""
    return _supcon(imagenette(), linear_epochs=20)


def imagenet_supcon() -> PretrainConfig:
    """ImageNet with labels, AutoAugment, batch 6144 (not measured; 2004.11362 reports 78.7% with other settings)."""
    # SupCon trains 350 epochs at lr 0.4 and decay 1e-3, on a loss times tau, with one linear layer as the head.
    views = replace(paper(), policy="autoaugment", strength=None, blur=None)
    return _supcon(replace(views, epochs=700, batch_size=6144), linear_epochs=90)


def _supcon(config: PretrainConfig, linear_epochs: int) -> PretrainConfig:
    """SupCon (2004.11362): labels choose the positives, tau 0.1, h of unit norm; then a linear layer on the encoder."""
    return replace(config, loss="supcon", temperature=0.1, normalize_h=True, linear_epochs=linear_epochs)


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "sample": sample,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "stl10": stl10,
    "stl10-walk": stl10_walk,
    "imagenette": imagenette,
    "imagenet": imagenet,
    "paper": paper,
    "v2": v2,
    "sample-supcon": sample_supcon,
    "cifar10-supcon": cifar10_supcon,
    "cifar100-supcon": cifar100_supcon,
    "stl10-supcon": stl10_supcon,
    "imagenette-supcon": imagenette_supcon,
    "imagenet-supcon": imagenet_supcon,
}


def recipe_config(name: str | None) -> PretrainConfig:
    """The configuration of that name; the defaults for None. Raises StepclrError for an unknown name."""
    return PretrainConfig() if name is None else RECIPES[choose("recipe", name, RECIPES)]()
