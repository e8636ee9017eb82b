"""Decide what the settings leave open, once, before step 1: config.json has it all, and a resumed run reuses it."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from importlib.metadata import version

import torch
from timm.models.resnet import ResNet
from torch import nn

from stepclr.config import PretrainConfig, settings_in
from stepclr.data.images import ImageSet
from stepclr.device import bf16_helps, default_device
from stepclr.distributed import ALONE, World
from stepclr.errors import StepclrError, choose
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder, build_encoder, checkpoint_activations
from stepclr.model.head import ProjectionHead, parse_widths
from stepclr.pretraining.batches import steps_per_epoch
from stepclr.pretraining.optim import DEFAULTS
from stepclr.pretraining.run import Fields, Run
from stepclr.views.numba.batch import Renderer
from stepclr.views.policies import policy_defaults
from stepclr.views.views import Views

CONTRASTIVE = ("nt_xent", "supcon")  # of projections; the other losses are of logits
STAGES = ((0.4, 0.5), (0.75, 0.75))  # of a progressive run: up to this share of the steps, this share of the size
CHANGEABLE = {"epochs", "keep_every", "monitor", "cache_gib"}  # on resume; all else stays as the run began


def settle(config: PretrainConfig, images: ImageSet, teacher: Classifier | None = None) -> PretrainConfig:
    """`config` with every value decided that depends on the images' sizes, the optimizer or the processor."""
    for what, value, choices in (
        ("optimizer", config.optimizer, DEFAULTS),
        ("loss", config.loss, (*CONTRASTIVE, "cross-entropy", "distill")),
        ("lr scaling", config.lr_scaling, ("linear", "sqrt")),
        ("precision", config.precision, ("auto", "bf16", "fp32")),
    ):
        choose(what, value, choices)
    for name in ("epochs", "batch_size", "micro_batch", "temperature", "cache_gib"):
        if getattr(config, name) is not None and not getattr(config, name) > 0:
            raise StepclrError(f"{name} must be above 0, not {getattr(config, name)}")
    _check_loss(config, images)
    if config.progressive and teacher:
        raise StepclrError("--progressive is not for --loss distill: the teacher takes views of one size")
    size = config.size or (teacher.encoder.size if teacher else view_size(images))
    if teacher and teacher.encoder.size != size:
        raise StepclrError(f"--size {size}: the teacher takes views of {teacher.encoder.size} px; leave --size out")
    lr, decay = DEFAULTS[config.optimizer]
    settled = {
        **_policy_settings(config.policy, size),
        "size": size,
        "lr": lr,
        "weight_decay": decay,
        "warmup": min(10.0, config.epochs / 10),
    }
    given = {name: getattr(config, name) for name in settled if getattr(config, name) is not None}
    precision = ("bf16" if bf16_helps() else "fp32") if config.precision == "auto" else config.precision
    head = config.head if config.loss in CONTRASTIVE else None  # a linear layer is in its place
    return replace(config, **{**settled, **given}, precision=precision, head=head)


def _policy_settings(policy: str, size: int) -> dict[str, float | None]:
    """What the policy leaves to the settings: the ops of a list have their own strengths and probabilities."""
    settings = policy_defaults(policy, size)
    return {"min_area": settings["min_area"]} if "(" in policy else settings


def _check_loss(config: PretrainConfig, images: ImageSet) -> None:
    """Raise StepclrError for settings that the loss cannot be had with, or would not heed."""
    contrastive = config.loss in CONTRASTIVE
    if contrastive and config.batch_size < 2:
        raise StepclrError("batch_size must be at least 2: an image alone has no negatives")
    if contrastive and config.views < 2:
        raise StepclrError(
            f"--loss {config.loss} contrasts the views of an image, and takes 2 or more, not {config.views}"
        )
    if not contrastive and config.linear_epochs:
        raise StepclrError(f"--loss {config.loss} trains a linear layer already: leave --linear-epochs out")
    if (config.loss == "distill") != (config.teacher is not None):
        raise StepclrError("--loss distill and --teacher CLASSIFIER belong together: give both or neither")
    for option, needs_labels in (
        (f"--loss {config.loss}", config.loss in ("supcon", "cross-entropy")),
        ("--balanced", config.balanced),
        (f"--linear-epochs {config.linear_epochs}", config.linear_epochs > 0),
    ):
        if needs_labels and not (images.labels >= 0).any():
            raise StepclrError(f"{option} needs labels, and {images.source} has none; nt_xent needs none")


def views_of(config: PretrainConfig, renderer: Renderer = "auto", share: float = 1.0) -> Views:
    """The views of a run, `share` of its size; one that goes on renders as it began."""
    return Views(
        config.policy,
        round(share * config.view_size),
        config.strength,
        config.blur,
        config.min_area,
        config.views,
        warp=config.warp,
        renderer=renderer,
    )


def growing(config: PretrainConfig, views: Views) -> list[tuple[float, Views]]:
    """(share of the steps, the views up to there): smaller ones first in a progressive run, which learns from more."""
    stages = STAGES if config.progressive else ()
    return [*((until, views_of(config, views.renderer, share)) for until, share in stages), (1.0, views)]


def view_size(images: ImageSet) -> int:
    """Side of a view: the images' own if they are square, all equal and at most 96 pixels, else 224."""
    sizes = images.sizes()
    sizes = sizes[sizes[:, 0] > 0]  # 0 stands for an image that cannot be read
    if len(sizes) and (sizes == sizes[0, 0]).all() and sizes[0, 0] <= 96:
        return int(sizes[0, 0])
    return 224


def build(config: PretrainConfig, images: ImageSet, teacher: Classifier | None = None) -> nn.ModuleDict:
    """Encoder and head of the run, newly initialized from torch's generator (or with `weights`).

    The head is a linear layer, one output a class, where the loss is one of logits.
    """
    encoder = build_encoder(config.encoder, config.stem, config.weights, config.view_size, config.normalize_h)
    encoder.classes = list(images.chosen or [])
    if config.progressive and not isinstance(encoder.body, ResNet):
        raise StepclrError(f"--progressive is for ResNets, which take views of any size; {config.encoder} takes one")
    if config.checkpoint_activations:
        checkpoint_activations(encoder)
    if config.loss in CONTRASTIVE:
        head: nn.Module = ProjectionHead.of_widths(encoder.num_features, head_widths(config, encoder))
    else:
        head = nn.Linear(encoder.num_features, len(teacher.classes if teacher else images.classes))
    return nn.ModuleDict({"encoder": encoder, "head": head})


def head_widths(config: PretrainConfig, encoder: Encoder) -> list[int]:
    """Widths of the head's layers; the hidden one is as wide as h by default."""
    return parse_widths(config.head or f"{encoder.num_features}-128")


def encoder_of(model: nn.ModuleDict) -> Encoder:
    """The encoder of `build`'s pair."""
    encoder = model["encoder"]
    assert isinstance(encoder, Encoder)
    return encoder


def describe(
    config: PretrainConfig,
    images: ImageSet,
    limit: int | None,
    model: nn.ModuleDict,
    views: Views,
    world: World = ALONE,
) -> Fields:
    """config.json: every setting as decided, the images, the machine."""
    encoder = encoder_of(model)
    return {
        **asdict(config),
        "stem": encoder.stem,
        "head": "-".join(map(str, head_widths(config, encoder))) if config.loss in CONTRASTIVE else None,
        "features": encoder.num_features,
        "source": images.source,
        "classes": encoder.classes,
        "labelled": int((images.labels >= 0).sum()),
        "limit": limit,
        "images": len(images),
        "skipped": len(images.skipped),
        "names_sha256": images.names_digest(),
        "steps_per_epoch": steps_per_epoch(len(images), config.batch_size),
        "memory_format": "channels_last",
        "renderer": views.renderer,
        "threads": torch.get_num_threads(),
        "ranks": world.size,
        "device": str(default_device()),
        "versions": {
            "stepclr": version("stepclr"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def resumed(config: PretrainConfig, stored: Fields, run: Run) -> PretrainConfig:
    """The settings of a run about to be resumed: its own, but for the CHANGEABLE ones.

    Raises StepclrError if `config` asks for another value of one of its own; None and "auto" ask for nothing.
    """
    began = settings_in(stored)
    own = [field.name for field in fields(PretrainConfig) if field.name not in CHANGEABLE]
    for name in own:
        value, first = getattr(config, name), getattr(began, name)
        if value not in (first, None, "auto"):
            flag = name.replace("_", "-")
            raise StepclrError(
                f"{run.folder} was begun with --{flag} {first}, not {value}; on resume a run keeps its "
                f"settings (but for {', '.join(sorted(CHANGEABLE))}): leave the option out, or name another --out"
            )
    return replace(config, **{name: getattr(began, name) for name in own})


def check_same_images(facts: Fields, stored: Fields, run: Run) -> None:
    """Raise StepclrError if a run about to be resumed was begun on other images."""
    if facts["names_sha256"] != stored["names_sha256"]:
        raise StepclrError(
            f"{run.folder} was begun on {stored['images']} images of {stored['source']}; the {facts['images']} "
            f"of {facts['source']} have other names"
        )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """As many threads as the run began with: another number would add floats in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
