"""Decide what the settings leave open, once, before step 1: config.json records it, and a resumed run reuses it."""

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from numbers import Integral
from typing import Any, get_args

from stepclr.config import (
    ADAPTING_EPOCHS,
    ADAPTING_RATE,
    EPOCHS,
    OPTIMIZERS,
    BatchNorm,
    Interpolation,
    Number,
    Precision,
    PretrainConfig,
    ResolvedConfig,
    RunConfig,
    Scaling,
)
from stepclr.data.images import ImageSet
from stepclr.data.labels import check_classes
from stepclr.data.reading import RGB, Reading
from stepclr.device import bf16_helps
from stepclr.errors import StepclrError, check_number, check_range, check_whole, choose
from stepclr.io import plain
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.build import OWN_MODULE, is_resnet, network_of
from stepclr.model.classifier import Classifier
from stepclr.recipes import length_as_asked
from stepclr.views.policies import TUNABLE, read_policy
from stepclr.views.views import SIDES, Renderer, Views

ENCODER = "resnet18"  # the default
READING = [setting.name for setting in fields(Reading)]
STAGES = ((0.4, 0.5), (0.75, 0.75))  # of a progressive run: up to this share of the steps, this share of the size


def resolve(config: PretrainConfig, images: ImageSet, teacher: Classifier | None = None) -> ResolvedConfig:
    """`config` with every value decided that depends on the images' sizes, the optimizer or the processor.

    Raises StepclrError for a setting that is not one of its choices, or that the others contradict.
    """
    _check_choices(config)
    _check_objective(config, images)
    size = _size(config, images, teacher)
    if config.progressive and round(size * STAGES[0][1]) < SIDES[0]:
        raise StepclrError(f"progressive begins with views of half the size, and {size} px are too few for that")
    policy = read_policy(config.policy, size)
    _, weight_decay = OPTIMIZERS[config.optimizer]
    epochs = epochs_of(config)
    defaults = {
        **policy.defaults(),
        "encoder": network_of(config.weights) or ENCODER,
        "interpolation": policy.interpolation,
        "temperature": OBJECTIVES[config.loss].temperature(size),
        "lr": usual_lr(config),
        "batchnorm": "frozen" if adapts(config) else "batch",
        "test_scale": teacher.encoder.test_size / size if teacher else 1.0,
        "weight_decay": weight_decay,
        "warmup": _warmup(epochs),
        "epochs": epochs,
    }
    settings = asdict(config) | {"warmup": fitting_warmup(config)}
    for name, value in defaults.items():
        if settings[name] is None:
            settings[name] = value
    if not OBJECTIVES[config.loss].contrastive:
        settings["head"] = None  # a linear layer is in its place
    if config.precision == "auto":
        settings["precision"] = "bf16" if bf16_helps() else "fp32"
    settings |= {"size": size, "channels": images.channels}
    settings |= {"value_range": images.value_range, "max_pixels": images.store.reading.limit}
    settings["damaged_shards"] = images.store.reading.damaged_shards or "refuse"
    return ResolvedConfig(**settings)


def as_plain(config: PretrainConfig) -> PretrainConfig:
    """The settings as config.json has them: numbers of numpy are Python's, and a list of ops has a name."""
    settings: dict[str, Any] = {setting.name: plain(getattr(config, setting.name)) for setting in fields(config)}
    return replace(config, **(settings | {"policy": read_policy(config.policy).name}))


def changed(config: PretrainConfig, options: Mapping[str, Any]) -> tuple[PretrainConfig, list[str]]:
    """`config` with these settings instead of its own, and a line for each of them that has no effect.

    Settings of its own that the options leave without use are gone: a recipe's blur is of no use to a policy without
    one, nor its head to a loss without one. See `_of_another_network` for those of its network.
    """
    given = [name for name, value in options.items() if value is not None]
    settings: dict[str, Any] = {name: plain(value) for name, value in options.items()}
    own = config
    config = replace(length_as_asked(config, given), **settings)
    _check_kinds(config)
    unused, lines = [], []
    if "policy" in given:
        policy = read_policy(config.policy)
        unused = [name for name in TUNABLE if name not in given and name not in policy.defaults()]
        if config.policy != own.policy and str(config.policy).startswith("domain:"):
            # What makes a policy that of a domain: a recipe's values are for photos of things.
            unused = [name for name in (*TUNABLE, "min_area") if name not in given]
    objective = OBJECTIVES[choose("loss", config.loss, OBJECTIVES)]
    for name, used in objective.uses.items():
        if used:
            continue
        unused.append(name)
        if name in given:
            others = ", ".join(loss for loss, other in OBJECTIVES.items() if other.uses[name])
            lines.append(f"{name} {options[name]} has no effect with the loss {config.loss}: it is for {others}")
    left_open = _of_another_network(own, config, given) | _of_another_loss(own, config)
    dropped: dict[str, Any] = dict.fromkeys(unused)
    dropped |= {name: value for name, value in left_open.items() if name not in given}
    if "encoder" in dropped and "lr" in left_open:
        lines.append(
            f"the weights are of {network_of(config.weights)}: the encoder {own.encoder} is not used, nor are the "
            "learning rate and the epochs that are for it"
        )
    return replace(config, **dropped), lines


def _of_another_network(own: PretrainConfig, config: PretrainConfig, given: Collection[str]) -> dict[str, Any]:
    """Settings as they are left open where `own` has them for another network than the one that is asked for.

    Weights bring their network and its stem, and a rate and a length that were chosen for another are not for them.
    Only ResNets have a choice of stems, and take views of every size; a teacher takes views of one.
    """
    brought = None
    if "weights" in given:  # "timm" are those that timm prefers for this network
        brought = config.encoder or ENCODER if config.weights == "timm" else network_of(config.weights)
    left_open: dict[str, Any] = {}
    if brought:
        left_open["stem"] = "auto"
        if config.weights != "timm":
            left_open["encoder"] = None
        if own.encoder not in (None, brought):
            left_open |= dict.fromkeys(["lr", "epochs", "minutes", "warmup"])
    network = config.encoder if "encoder" in given else brought
    resnet = network is None or is_resnet(str(network))
    if not resnet:
        left_open["stem"] = "auto"
    if not resnet or OBJECTIVES[config.loss].needs_teacher:
        left_open["progressive"] = False
    return left_open


def _of_another_loss(own: PretrainConfig, config: PretrainConfig) -> dict[str, Any]:
    """Settings as they are left open where `own` has them for another loss, or for another optimizer."""
    left_open: dict[str, Any] = {}
    before, now = (OBJECTIVES[choose("loss", each.loss, OBJECTIVES)] for each in (own, config))
    if before.contrastive != now.contrastive:
        left_open |= {"temperature": None, "loss_scale": PretrainConfig.loss_scale}
    if config.loss != own.loss and not (now.contrastive and now.needs_labels):
        left_open["linear_epochs"] = PretrainConfig.linear_epochs  # SupCon's second stage
    if config.optimizer != own.optimizer:
        left_open |= {"lr": None, "weight_decay": None}
    return left_open


def asked_for(config: RunConfig, images: ImageSet | None) -> dict[str, object]:
    """The settings to give for a run like this one: those that `resolve` would not decide in the same way by itself.

    images: those of the run; without them nothing is left to be decided. How they are read is not among the settings.
    """
    settings: dict[str, Any] = asdict(config.settings()) | dict.fromkeys(READING)
    defaults = asdict(PretrainConfig())
    for name, default in defaults.items():
        left_open = settings | {name: default}
        if images is not None and _decides(PretrainConfig(**left_open), images, name, getattr(config, name)):
            settings = left_open
    return {name: value for name, value in settings.items() if value != defaults[name]}


def _decides(config: PretrainConfig, images: ImageSet, name: str, value: object) -> bool:
    try:
        return bool(getattr(resolve(config, images), name) == value)
    except StepclrError:  # the other settings need this one
        return False


def with_epochs(decided: ResolvedConfig, config: PretrainConfig, epochs: Number) -> ResolvedConfig:
    """`decided` with another number of epochs, and the warm-up that `config` asks for or leaves to them."""
    warmup = fitting_warmup(replace(config, epochs=epochs))
    return replace(decided, epochs=epochs, warmup=_warmup(epochs) if warmup is None else warmup)


def _warmup(epochs: Number) -> float:
    return min(10.0, epochs / 10)


def adapts(config: PretrainConfig) -> bool:
    """Whether a contrastive loss adapts given weights, which a rate for new ones would undo."""
    return config.weights is not None and OBJECTIVES[config.loss].contrastive


def usual_lr(config: PretrainConfig) -> float:
    """The rate of a run that asks for none, at batch 256."""
    lr, _ = OPTIMIZERS[config.optimizer]
    return lr * ADAPTING_RATE if adapts(config) else lr


def epochs_of(config: PretrainConfig) -> Number:
    """The epochs of a run: those that are asked for, or fewer to adapt weights than to train new ones.

    Where minutes are given, this number stands only until the pace is known: see `with_epochs`.
    """
    if config.epochs is not None:
        return config.epochs
    return ADAPTING_EPOCHS if adapts(config) else EPOCHS


def fitting_warmup(config: PretrainConfig) -> float | None:
    """The warm-up that is asked for, in epochs; None, for the default, if it is as long as the run or longer.

    The rate would end at its peak otherwise, or below it, and never fall.
    """
    if config.warmup is None or config.warmup >= epochs_of(config):
        return None
    return config.warmup


def _check_kinds(config: PretrainConfig) -> None:
    """Raise StepclrError for None where nothing would decide, and for an object where a name or a path stands."""
    for setting in fields(config):
        if getattr(config, setting.name) is None and setting.default is not None:
            raise StepclrError(f"{setting.name} must not be None: leave it out for {setting.default!r}")
    for name in ("encoder", "weights", "monitor", "teacher"):
        value = getattr(config, name)
        if not isinstance(value, str | os.PathLike | None):
            kind = value.__name__ if isinstance(value, type) else type(value).__name__
            raise StepclrError(f"{name} must be a name or a path, not {kind}")


def _check_choices(config: PretrainConfig) -> None:
    _check_kinds(config)
    choose("optimizer", config.optimizer, OPTIMIZERS)
    choose("loss", config.loss, OBJECTIVES)
    choose("interpolation", config.interpolation or "bicubic", get_args(Interpolation))
    choose("batchnorm", config.batchnorm or "batch", get_args(BatchNorm))
    choose("lr_scaling", config.lr_scaling, get_args(Scaling))
    choose("precision", config.precision, get_args(Precision))
    for name in ("batch_size", "micro_batch", "size", "views", "keep_every"):
        check_whole(name, getattr(config, name), 1)
    check_whole("linear_epochs", config.linear_epochs, 0)
    for name in ("epochs", "minutes", "lr", "temperature", "loss_scale", "cache_gib"):
        check_number(name, getattr(config, name), above=0)
    check_range("test_scale", config.test_scale, 1, 2)  # images are decoded at twice the views' side
    for name in ("weight_decay", "warmup"):
        check_number(name, getattr(config, name), least=0)
    if config.minutes is not None and config.epochs is not None:
        raise StepclrError("minutes and epochs both say how long the run is: give one of them")
    if config.minutes is not None and config.linear_epochs:
        raise StepclrError("minutes does not time the second stage: choose linear_epochs=0, or epochs and no minutes")
    own = (config.encoder or "").startswith(OWN_MODULE)  # it may bring its weights
    if config.batchnorm == "frozen" and config.weights is None and not own:
        raise StepclrError("batchnorm=frozen keeps the mean and variance of given weights: give weights too")
    if not isinstance(config.seed, Integral):
        raise StepclrError(f"seed must be a whole number, not {config.seed!r}")
    if not -(2**63) <= config.seed < 2**63:
        raise StepclrError(f"seed must be a number of 64 bits, not {config.seed}")


def _check_objective(config: PretrainConfig, images: ImageSet) -> None:
    """Raise StepclrError for settings that the loss cannot be had with, or would ignore."""
    objective = OBJECTIVES[config.loss]
    if objective.contrastive and config.batch_size < 2:
        raise StepclrError("batch_size must be at least 2: an image alone has no negatives")
    if objective.contrastive and config.views < 2:
        raise StepclrError(
            f"the loss {config.loss} contrasts the views of an image: views must be at least 2, not {config.views}"
        )
    if not objective.contrastive and config.linear_epochs:
        raise StepclrError(f"the loss {config.loss} trains a linear layer already: leave out linear_epochs")
    if objective.needs_teacher != (config.teacher is not None):
        raise StepclrError("loss='distill' needs a teacher, and a teacher needs loss='distill'")
    if objective.needs_teacher and config.progressive:
        raise StepclrError("progressive and a teacher cannot be combined: the teacher takes views of one size")
    uses = {
        f"the loss {config.loss}": objective.needs_labels,
        "balanced": config.balanced,
        "linear_epochs": config.linear_epochs > 0,
    }
    for setting, needs_labels in uses.items():
        if needs_labels and not (images.labels >= 0).any():
            raise StepclrError(f"{setting} needs labels, and {images.source} has none; the loss nt-xent needs none")
        if needs_labels:
            check_classes(images)


def _size(config: PretrainConfig, images: ImageSet, teacher: Classifier | None) -> int:
    if teacher is None:
        return config.size or view_size(images)
    if config.size not in (None, teacher.encoder.size):
        raise StepclrError(f"size is {config.size}, but the teacher takes views of {teacher.encoder.size} pixels")
    return teacher.encoder.size


def views_of(config: ResolvedConfig, renderer: Renderer = "auto", share: float = 1.0) -> Views:
    """The views of a run, at `share` of its size; a resumed run renders as it began."""
    return Views(
        config.policy,
        round(share * config.size),
        config.strength,
        config.blur,
        config.min_area,
        config.views,
        config.interpolation,
        warp=config.warp,
        renderer=renderer,
        channels=config.channels or RGB,
    )


def stages_of(config: ResolvedConfig, views: Views) -> list[tuple[float, Views]]:
    """(share of the steps, the views up to there): a progressive run begins with smaller views."""
    stages = []
    if config.progressive:
        stages = [(until, views_of(config, views.renderer, share)) for until, share in STAGES]
    return [*stages, (1.0, views)]


def work_of(config: ResolvedConfig, step: int, steps: int) -> float:
    """How many full steps the steps up to this one amount to: one with smaller views counts as much as their area."""
    work, begun = 0.0, 0.0
    for until, share in (*(STAGES if config.progressive else ()), (1.0, 1.0)):
        ends = min(until * steps, step)
        work += max(0.0, ends - begun) * share**2
        begun = until * steps
    return work


def view_size(images: ImageSet) -> int:
    """Side of a view: the images' own if they are square, all equal and at most 96 pixels, else 224."""
    sizes = images.sizes()
    sizes = sizes[sizes[:, 0] > 0]  # 0 stands for an image that cannot be read
    if len(sizes) and (sizes == sizes[0, 0]).all() and sizes[0, 0] <= 96:
        return int(sizes[0, 0])
    return 224
