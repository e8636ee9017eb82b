"""Named configurations. The first line of each says what it is for and what it reaches. Imports no torch.

"measured": these very settings ran here, and benchmarks/results/ has the command and the number. "published": these are
the settings that a paper describes, with the paper's number, and nobody has run them here. "not measured": no number of
these settings is known; a number of similar settings says whose it is and how they differ.

What no setting here repeats of the published ones: SimCLR's and SupCon's code draws the aspect of a crop uniformly, in
up to 100 attempts (here and in torchvision: its logarithm, in 10). SupContrast and SupCon normalize the images; here
they stay in [0, 1]. SupContrast starts the last BatchNorm of a ResNet block at 1; here, as in SimCLR's code, at 0.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from stepclr.config import PretrainConfig
from stepclr.errors import choose


@dataclass(frozen=True)
class Recipe:
    """One line for `stepclr --help`, and the settings."""

    line: str
    config: PretrainConfig


def _with_labels(config: PretrainConfig, linear_epochs: int, **changes: Any) -> PretrainConfig:
    """SupCon (2004.11362): labels choose the positives, tau 0.1; then a linear layer on the frozen encoder."""
    return replace(config, loss="supcon", temperature=0.1, linear_epochs=linear_epochs, **changes)


SAMPLE = PretrainConfig(
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

# Chosen by what minutes on two CPU cores reach: benchmarks/results/accuracy.md. A ResNet-18 sees a fifth as many images
# in the same time, and smaller views first leave time for more epochs. CIFAR-10's 32 px are worth a stem that keeps all
# of them.
NARROW = PretrainConfig(
    encoder="resnet10x0.5",
    head="1024-128",
    batch_size=128,
    lr=0.5,
    min_area=0.2,
    progressive=True,
    test_scale=1.5,
)
CIFAR10 = replace(NARROW, stem="small", loss="dcl", temperature=0.1, epochs=20)
IMAGENETTE = replace(NARROW, stem="imagenet", temperature=0.2, epochs=104)  # 30 minutes

# SupContrast's README and flags (github.com/HobbitLong/SupContrast): batch 1024, rate 0.5 (0.125 at batch 256), decay
# 1e-4, a loss times tau/0.07, crops from 0.2, a head without BatchNorm. It differs from this in plain momentum (here
# Nesterov), in decay on BatchNorm and biases too, and in a rate that ends at a thousandth of its peak.
CIFAR100 = PretrainConfig(
    encoder="resnet50",
    stem="small",
    strength=0.5,
    blur=0.0,
    min_area=0.2,
    interpolation="bilinear",
    temperature=0.5,
    loss_scale=0.5 / 0.07,
    head="2048-128:plain",
    lr=0.125,
    lr_scaling="linear",
    weight_decay=1e-4,
    warmup=10.0,
    epochs=1000,
    batch_size=1024,
)

# No source gives a recipe at 96 px: the views are ImageNet's with a milder crop.
STL10 = PretrainConfig(encoder="resnet18", epochs=100, batch_size=256, temperature=0.2, min_area=0.2)

# 2002.05709 App. A and B.6, and the README of github.com/google-research/simclr, whose loss is the sum of two means.
PAPER = PretrainConfig(
    encoder="resnet50",
    stem="imagenet",
    size=224,
    strength=1.0,
    blur=0.5,
    min_area=0.08,
    temperature=0.1,
    loss_scale=2.0,
    head="2048-128:reference",
    optimizer="lars",
    lr=0.3,
    lr_scaling="linear",
    weight_decay=1e-6,
    warmup=10.0,
    epochs=1000,
    batch_size=4096,
)

# supcon_imagenet_resnet50.sh, configs.sh and the defaults of hparams_flags.py in github.com/google-research/
# google-research/tree/master/supcon: a loss times tau, and a head of one linear layer. Its AutoAugment is another table
# than torchvision's. In its second stage, the rate of RMSProp decays from 0.05 by 0.97 each half epoch, on views of the
# same policy; here it is SGD with a cosine, on crop and flip.
IMAGENET_SUPCON = _with_labels(
    replace(PAPER, policy="autoaugment", strength=None, blur=None),
    linear_epochs=90,
    normalize_h=True,
    interpolation="bilinear",
    loss_scale=0.1,
    head="128:reference",
    lr=0.4,
    weight_decay=1e-3,
    warmup=12.0,
    epochs=350,
    batch_size=6144,
)

RECIPES = {
    "sample": Recipe(
        "The bundled sample (28 px), 10 labels per class: linear 76.8 ± 1.4 % (measured, 1 run; others 75.9 to 77.3).",
        SAMPLE,
    ),
    "cifar10": Recipe(
        "CIFAR-10 (32 px), narrow ResNet-10, 20 epochs; with --minutes 10 on 2 CPU cores: kNN 68.9% (measured, 1 run).",
        CIFAR10,
    ),
    "cifar100": Recipe(
        "CIFAR-100 (32 px), ResNet-50, 1000 epochs, as SupContrast, which reports 70.7% (not measured).", CIFAR100
    ),
    "stl10": Recipe("STL-10 (96 px), ResNet-18, for stl10:train+unlabeled, 100 epochs (not measured).", STL10),
    "stl10-walk": Recipe(
        "STL-10, few classes: airplane and car, linear 85.6 ± 1.8 % with 10 labels per class (measured, 1 run).",
        replace(STL10, epochs=60, batch_size=128),
    ),
    "imagenette": Recipe(
        "Imagenette (96 px), narrow ResNet-10: linear 64.3 ± 1.4 % with 10 labels per class (measured, 1 run).",
        IMAGENETTE,
    ),
    "imagenet": Recipe(
        "ImageNet on one machine, ResNet-50, batch 256, 100 epochs: linear 62.8% (published, 2002.05709 App. B.1).",
        replace(PAPER, lr_scaling="sqrt", lr=0.075 * 16, epochs=100, batch_size=256),
    ),
    "paper": Recipe(
        "SimCLR's own ImageNet settings, ResNet-50, 1000 epochs: linear 69.3% (published, 2002.05709 table 6).", PAPER
    ),
    "paper-2x": Recipe(
        "The same with ResNet-50 2x: linear 74.2% (published, 2002.05709 table 6).",
        replace(PAPER, encoder="resnet50x2", head="4096-128:reference"),
    ),
    "paper-4x": Recipe(
        "The same with ResNet-50 4x: linear 76.5% (published, 2002.05709 table 6).",
        replace(PAPER, encoder="resnet50x4", head="8192-128:reference"),
    ),
    # App. B.9 has 94.0% for its best model with this batch, and does not say which lr of {0.5, 1, 1.5} and which tau of
    # {0.1, 0.5, 1} it had. These are the two in the command of the code's README (batch 512, ResNet-18, about 91%).
    "paper-cifar10": Recipe(
        "CIFAR-10, ResNet-50, 1000 epochs, as SimCLR, whose best lr and temperature reach 94.0% (not measured).",
        replace(PAPER, stem="small", size=32, strength=0.5, blur=0.0, temperature=0.5, lr=1.0, batch_size=1024),
    ),
    # 2006.10029 table 1. It fine-tunes from head.1 (57.9% with 1% of the labels). Both numbers are with a memory of 64K
    # negatives from a slowly moving copy of the network, as in MoCo, which is worth about one point.
    "v2": Recipe(
        "SimCLRv2, ResNet-50, 800 epochs, head of three layers (not measured; the paper has 71.7% with a MoCo memory).",
        replace(
            PAPER, head="2048-2048-128:reference", lr_scaling="sqrt", lr=0.1 * 16, weight_decay=1e-4, warmup=40.0,
            epochs=800,
        ),
    ),
    "sample-supcon": Recipe(
        "The sample with labels, for sample:train: linear 77.4%, its own classifier 74.0% (measured, 3 runs).",
        _with_labels(SAMPLE, linear_epochs=90, normalize_h=True),
    ),
    "cifar10-supcon": Recipe(
        "CIFAR-10 with labels (not measured).", _with_labels(CIFAR10, linear_epochs=10, normalize_h=True)
    ),
    # SupContrast does not normalize h. Its second stage has batch 512, rate 5 and steps of 0.2 at epochs 60, 75 and 90.
    "cifar100-supcon": Recipe(
        "CIFAR-100 with labels, as SupContrast, which reports 76.5% (not measured).",
        _with_labels(CIFAR100, linear_epochs=100, loss_scale=0.1 / 0.07),
    ),
    "stl10-supcon": Recipe(
        "STL-10 with labels, for stl10:train, with or without the unlabeled images (not measured).",
        _with_labels(STL10, linear_epochs=20, normalize_h=True),
    ),
    "imagenette-supcon": Recipe(
        "Imagenette with labels (not measured).", _with_labels(IMAGENETTE, linear_epochs=20, normalize_h=True)
    ),
    "imagenet-supcon": Recipe(
        "ImageNet with labels, AutoAugment, as SupCon, which reports 78.7% (not measured).", IMAGENET_SUPCON
    ),
    # supcon_imagenet_resnet200.sh; its scripts leave the warp out, of which the paper says that it helps.
    "resnet200-supcon": Recipe(
        "The same with ResNet-200 and the stacked policy: SupCon reports 81.4% (not measured).",
        replace(
            IMAGENET_SUPCON, encoder="resnet200", policy="stacked", strength=1.0, blur=0.5, warp=0.0, lr=0.2,
            weight_decay=1e-4, epochs=700, batch_size=4096,
        ),
    ),
}  # fmt: skip


def recipe_config(name: str | None) -> PretrainConfig:
    """The configuration of that name; the defaults for None. Raises StepclrError for an unknown name."""
    return PretrainConfig() if name is None else RECIPES[choose("recipe", name, RECIPES)].config


def length_as_asked(config: PretrainConfig, asked: Collection[str]) -> PretrainConfig:
    """`config` without its minutes where epochs are asked for instead, and the other way round."""
    if "minutes" in asked and "epochs" not in asked:
        return replace(config, epochs=None)
    if "epochs" in asked and "minutes" not in asked:
        return replace(config, minutes=None)
    return config
