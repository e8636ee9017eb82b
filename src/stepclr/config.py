"""What a run can be told: one frozen dataclass that the command line, `pretrain` and `config.json` share. No torch."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from stepclr.errors import StepclrError

# What config.json holds besides the settings, and a resumed run asks for.
FACTS = {
    "source": str,
    "classes": list[str],
    "limit": int | None,
    "images": int,
    "names_sha256": str,
    "threads": int,
    "renderer": str,
}


def _default(when_open: str, metavar: str) -> object:
    """How the command line shows a setting that None leaves open."""
    return arg(
        metavar=metavar,
        help_behavior_hint=lambda value: f"(default: {when_open if value == 'None' else value})",
    )


def _floats(words: list[str]) -> float | tuple[float, ...]:
    numbers = tuple(float(number) for number in words[0].split(","))
    return numbers[0] if len(numbers) == 1 else numbers


# A number, or one for each view: with commas on the command line.
Strength = Annotated[
    float | tuple[float, ...] | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="S[,S]",
        instance_from_str=_floats,
        is_instance=lambda value: value is None or isinstance(value, float | int | tuple),
        str_from_instance=lambda value: [",".join(map(str, value)) if isinstance(value, tuple) else str(value)],
    ),
    _default("0.5 up to 32 px, 1.0 above", "S[,S]"),
]


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run; None: decided from images or machine, and printed at the start."""

    encoder: str = "resnet18"
    """Network: resnet18 ... resnet200, or any timm name."""
    stem: Literal["auto", "imagenet", "small", "small-stride2", "own"] = "auto"
    """First layers of a ResNet; auto: small up to 64 pixels, the network's own above."""
    weights: Annotated[str | None, _default("a new initialization", "NAME|PATH")] = None
    """Start from "timm" (its pretrained weights), a checkpoint file or a run."""
    normalize_h: bool = False
    """Divide h by its length, before the head and wherever the encoder is used (SupCon)."""
    checkpoint_activations: bool = False
    """Keep few of the encoder's activations and compute the others again: less memory, about a third more time."""
    policy: str = "simclr"
    """Augmentation policy of the views: simclr, simaugment, autoaugment[:TABLE], randaugment[:LAYERS,MAGNITUDE],
    stacked, crop; or ops joined by +, as "ColorJitter(strength=0.5)+Blur(p=0.3)"."""
    views: int = 2
    """Views of an image; in the contrastive losses each is a positive of each."""
    size: Annotated[
        int | None, _default("the images' own side if all are square, equal and at most 96, else 224", "PX")
    ] = None
    """Side of a view, pixels."""
    strength: Strength = None
    """Strength s of the color jitter, in policies that have it; with commas one for each view."""
    blur: Annotated[float | None, _default("0 up to 32 px, 0.5 above", "P")] = None
    """Probability of the Gaussian blur, in policies that have it."""
    warp: Annotated[float | None, _default("0.5", "P")] = None
    """Probability of the sparse image warp, in policies that have it (simaugment, stacked)."""
    min_area: Annotated[float | None, _default("0.2 up to 32 px, 0.08 above", "SHARE")] = None
    """Smallest crop, share of the image's area."""
    progressive: bool = False
    """Begin with smaller views: half the side for the first 0.4 of the steps, three quarters of it up to 0.75."""
    loss: Literal["nt_xent", "supcon", "cross-entropy", "distill"] = "nt_xent"
    """nt_xent needs no label (SimCLR); supcon uses those there are (SupCon). With a linear layer in the head's place:
    cross-entropy (supervised), distill (SimCLRv2: learn from a teacher's predictions)."""
    teacher: Annotated[str | None, _default("none", "CLASSIFIER")] = None
    """The classifier that --loss distill learns from."""
    temperature: float = 0.5
    """Temperature tau of the loss; cross-entropy has none."""
    balanced: bool = False
    """Let every class have as many places in a batch: those of few images are repeated, of many left out."""
    head: Annotated[str | None, _default("F-128, F the encoder's features", "WIDTHS")] = None
    """Widths of the projection head, as 2048-128 (two layers) or 2048-2048-128 (three); the losses with a linear layer
    in its place have none."""
    linear_epochs: int = 0
    """SupCon's second stage: after pretraining, so many epochs of a linear layer on the frozen encoder."""
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd (Nesterov momentum 0.9), lars (momentum 0.9, the paper's) or adamw."""
    lr: Annotated[float | None, _default("0.12 for sgd, 0.3 for lars, 0.001 for adamw", "RATE")] = None
    """Peak learning rate at batch 256."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """How the rate follows the batch B: times B/256, or times sqrt(B/256)."""
    weight_decay: Annotated[float | None, _default("0.0005 for sgd, 0.000001 for lars, 0.05 for adamw", "DECAY")] = None
    """Weight decay, not on BatchNorm or biases."""
    warmup: Annotated[float | None, _default("a tenth of the epochs, at most 10", "EPOCHS")] = None
    """Epochs of linear warm-up, before the cosine to 0."""
    epochs: int = 100
    """Passes over the images; one pass is floor(n / batch) full batches."""
    batch_size: int = 256
    """Images in a batch."""
    micro_batch: Annotated[int | None, _default("the whole batch", "N")] = None
    """Images to put through the encoder at a time; the loss still contrasts the whole batch. Less memory, about a
    third more time; BatchNorm in the encoder normalizes each such part by itself."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of encoder and head; auto: bf16 where the processor has it and a probe finds it correct, else fp32."""
    seed: int = 0
    """Seed of initialization, batch order and views."""
    monitor: Annotated[str | None, _default("the source itself, where it has labels", "SOURCE")] = None
    """Labelled images for the kNN score while training."""
    keep_every: Annotated[int | None, _default("keep the last two only", "EPOCHS")] = None
    """Keep the checkpoint of every so many epochs."""
    cache_gib: float = 4.0
    """GiB of decoded images to keep in the cache; a larger set is decoded again each epoch."""

    @property
    def view_size(self) -> int:
        """`size`, once it is decided."""
        assert self.size is not None
        return self.size

    @property
    def crop_area(self) -> float:
        """`min_area`, once it is decided."""
        assert self.min_area is not None
        return self.min_area

    @property
    def warmup_epochs(self) -> float:
        """`warmup`, once it is decided."""
        assert self.warmup is not None
        return self.warmup


class Stored(dict[str, Any]):
    """The fields of a config.json. One that is asked for and not there raises StepclrError."""

    path: Path

    def __missing__(self, name: str) -> Any:
        raise StepclrError(f"{self.path} is damaged: it has no {name!r}")


def stored_fields(run: Path) -> Stored | None:
    """config.json of the run in that folder; None where there is none. Raises StepclrError if it is damaged."""
    path = run / "config.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise StepclrError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise StepclrError(f"{path} is damaged: it is no JSON object")
    for name, kind in {**get_type_hints(PretrainConfig), **FACTS}.items():
        if name in found and not _is_a(found[name], kind):
            raise StepclrError(f"{path} is damaged: {name} is {found[name]!r}")
    stored = Stored(found)
    stored.path = path
    return stored


def _is_a(value: object, kind: Any) -> bool:
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return any(_is_a(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) in (tuple, list):  # JSON has lists only
        return isinstance(value, list) and all(_is_a(item, get_args(kind)[0]) for item in value)
    kinds = (int, float) if kind is float else kind
    return isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)


def stored_config(run: Path) -> PretrainConfig | None:
    """The settings of the run in that folder, as its config.json has them; None where there is none."""
    stored = stored_fields(run)
    return None if stored is None else settings_in(stored)


def settings_in(stored: dict[str, Any]) -> PretrainConfig:
    """The settings among the fields of a config.json; one of an earlier version does not name them all."""
    own: dict[str, Any] = {field.name: stored[field.name] for field in fields(PretrainConfig) if field.name in stored}
    if isinstance(own.get("strength"), list):
        own["strength"] = tuple(own["strength"])  # JSON has lists only
    return PretrainConfig(**own)
