"""Settings: what a user may set, what a run decided, and config.json. The command line reads this file without torch.

`PretrainConfig` is what a user may set; None leaves a setting to the images or the machine. `ResolvedConfig` is the
same with everything decided. `RunConfig` adds the facts of a run, and is what config.json contains.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from stepclr.data.reading import RGB, Channels, DamagedShards, MaxPixels, Range, Reading, ValueRange, as_words
from stepclr.errors import StepclrError, fault_of
from stepclr.io import from_json, write_whole

Number = int | float
CONFIG_FILE = "config.json"
OPTIMIZERS = {  # learning rate at batch 256, weight decay
    "sgd": (0.12, 5e-4),
    "lars": (0.3, 1e-6),
    "adamw": (1e-3, 0.05),
}
EPOCHS = 100
# A contrastive run that starts from given weights adapts them: fewer epochs, and this share of the optimizer's rate,
# which was chosen on training images of CIFAR-10, unlike the epochs (benchmarks/results/evaluation.md).
ADAPTING_EPOCHS, ADAPTING_RATE = 20, 1 / 16
# What config.json of an earlier version does not say.
OLDER: dict[str, Any] = {
    "batchnorm": "batch",
    "minutes": None,
    "began_as": None,
    "labels": [],
    "split": None,
    "labels_checksum": None,
    "channels": RGB,
    "test_scale": 1.0,
}


def total_steps(epochs: Number, steps_per_epoch: int) -> int:
    """The steps of a run of this many epochs, the last of which may end early."""
    return max(1, round(epochs * steps_per_epoch))


def _default(when_open: str, metavar: str) -> object:
    """How the command line shows a setting that None leaves open."""
    return arg(
        metavar=metavar, help_behavior_hint=lambda value: f"(default: {when_open if value == 'None' else value})"
    )


def _of_optimizers(column: int) -> str:
    """A column of OPTIMIZERS as the command line shows it."""
    numbers = {name: f"{defaults[column]:f}".rstrip("0") for name, defaults in OPTIMIZERS.items()}
    return ", ".join(f"{number} for {name}" for name, number in numbers.items())


def _floats(words: list[str]) -> float | tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in words[0].split(","))
    except ValueError:
        raise ValueError(f"{words[0]!r} is not a number, or several with commas, such as 0.5,1") from None
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

Stem = Literal["auto", "imagenet", "small", "small-stride2", "own"]
OptimizerName = Literal["sgd", "lars", "adamw"]
Scaling = Literal["linear", "sqrt"]
Interpolation = Literal["bicubic", "bilinear"]
Precision = Literal["auto", "bf16", "fp32"]
BatchNorm = Literal["batch", "frozen"]


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run. None leaves a setting to the images or the machine; it is printed at the start."""

    encoder: Annotated[str | None, _default("that of the weights, else resnet18", "NAME")] = None
    """Network: resnet10 to resnet200, also wider or narrower (resnet50x2, resnet18x0.5), or any timm name."""
    stem: Stem = "auto"
    """First layers of a ResNet. imagenet: 7x7 stride 2 and max-pool; small: 3x3 stride 1; small-stride2: 3x3 stride 2;
    own: unchanged; auto: that of the weights, else small up to 64 px, else unchanged."""
    weights: Annotated[str | None, _default("a new initialization", "RUN|FILE|timm:NAME")] = None
    """Initial weights: a run, a checkpoint file, timm:NAME (pretrained, such as timm:resnet50.a1_in1k), or timm for
    those that timm prefers for the encoder."""
    mean_std: Annotated[
        str | None, _default("the weights' own, where known, else none", "imagenet|none|M,M,M,S,S,S")
    ] = None
    """Mean and standard deviation of the channels, by which the encoder normalizes images in [0, 1]."""
    normalize_h: bool = False
    """Normalize h to length 1, before the head and wherever the encoder is used (SupCon)."""
    batchnorm: Annotated[
        BatchNorm | None, _default("frozen to adapt weights with a contrastive loss, else batch", "{batch,frozen}")
    ] = None
    """What BatchNorm in the encoder normalizes by in training: the mean and variance of the batch, or those of the
    weights, which then stay as they are."""
    checkpoint_activations: bool = False
    """Recompute the encoder's activations in the backward pass: less memory, about a third more time."""
    policy: str = "simclr"
    """Augmentation policy of the views: simclr, simaugment, autoaugment[:TABLE], randaugment[:LAYERS,MAGNITUDE],
    stacked, crop, domain:{aerial,microscopy,xray,document}; or policies and ops joined by +, such as
    simclr+VerticalFlip or "ColorJitter(strength=0.5)+Blur(p=0.3)"."""
    views: int = 2
    """Views per image. In the contrastive losses, all views of an image are positives of one another."""
    size: Annotated[
        int | None, _default("the images' own side if all are square, equal and at most 96, else 224", "PX")
    ] = None
    """Side of a view in pixels."""
    test_scale: Annotated[float | None, _default("that of the teacher, else 1", "FACTOR")] = None
    """Side of a whole image, wherever the trained encoder represents one, as a multiple of the view's, from 1 to 2.
    Objects are larger in a random crop than in the whole image, which 1.5 makes up for (FixRes)."""
    strength: Strength = None
    """Strength s of the color jitter, in policies that have one. Separate the strengths of several views by commas."""
    blur: Annotated[float | None, _default("0 up to 32 px, 0.5 above", "P")] = None
    """Probability of the Gaussian blur, in policies that have one."""
    warp: Annotated[float | None, _default("0.5", "P")] = None
    """Probability of the sparse image warp, in policies that have one (simaugment, stacked)."""
    min_area: Annotated[float | None, _default("0.2 up to 32 px, 0.08 above; more in domain policies", "SHARE")] = None
    """Smallest crop, as a share of the image's area."""
    interpolation: Annotated[
        Interpolation | None, _default("bilinear for simaugment, else bicubic", "{bicubic,bilinear}")
    ] = None
    """How a crop is resized to a view."""
    progressive: bool = False
    """Begin with smaller views: half the side for the first 40% of the steps, three quarters of it up to 75%."""
    loss: Annotated[str, arg(metavar="LOSS")] = "nt-xent"
    """nt-xent (SimCLR) and dcl (decoupled: no positives in the denominator) need no labels; supcon uses the labels that
    are available (SupCon). The others replace the head by a linear layer: cross-entropy (supervised), and distill
    (learn a teacher's predictions, SimCLRv2)."""
    teacher: Annotated[str | None, _default("none", "CLASSIFIER")] = None
    """Classifier to learn from, with the loss distill."""
    temperature: Annotated[
        float | None, _default("0.2 up to 96 px, 0.1 above; 0.1 for supcon, 1 for distill", "TAU")
    ] = None
    """Temperature tau of the loss; cross-entropy does not use it."""
    loss_scale: float = 1.0
    """Factor on the loss in the gradient. Some authors train on a multiple of the mean, which changes what a learning
    rate and a weight decay mean. What is printed and logged is the mean."""
    balanced: bool = False
    """Balance the classes in each batch: repeat images of rare classes, and drop images of common ones."""
    head: Annotated[str | None, _default("F-128, where F is the width of h", "WIDTHS")] = None
    """Widths of the projection head, such as 2048-128 (two layers), 2048-2048-128 (three), or 128 (one linear layer).
    2048-128:plain has no BatchNorm, and 2048-128:reference is the head of SimCLR's code. The losses that replace the
    head do not use it."""
    linear_epochs: int = 0
    """Epochs of SupCon's second stage: after pretraining, train a linear layer on the frozen encoder."""
    optimizer: OptimizerName = "sgd"
    """sgd has Nesterov momentum 0.9; lars has momentum 0.9, as in the paper."""
    lr: Annotated[
        float | None, _default(f"{_of_optimizers(0)}; 1/{1 / ADAPTING_RATE:g} of that to adapt weights", "RATE")
    ] = None
    """Peak learning rate at batch 256."""
    lr_scaling: Scaling = "linear"
    """How the learning rate grows with the batch size B: by B/256, or by sqrt(B/256)."""
    weight_decay: Annotated[float | None, _default(_of_optimizers(1), "DECAY")] = None
    """Weight decay; it does not apply to BatchNorm and biases."""
    warmup: Annotated[float | None, _default("a tenth of the epochs, at most 10", "EPOCHS")] = None
    """Epochs of linear warm-up, before the cosine decay to 0; the default where they are not fewer than the epochs."""
    epochs: Annotated[
        Number | None, _default(f"{EPOCHS}, or {ADAPTING_EPOCHS} to adapt weights with a contrastive loss", "N")
    ] = None
    """Passes over the images; 2.5 ends in the middle of the third. One has floor(n / batch size) full batches."""
    minutes: Annotated[Number | None, _default("as long as the epochs take", "M")] = None
    """Instead of epochs: how long the run may take on this machine, with everything that it does. A short trial
    measures the pace and decides the number of epochs, which config.json records."""
    batch_size: int = 256
    """Images per batch, over all processes; at most all images. The learning rate is that of the batch that is used."""
    micro_batch: Annotated[int | None, _default("the whole batch", "N")] = None
    """Images that go through the encoder at a time, while the loss contrasts the whole batch. Less memory, about a
    third more time. BatchNorm in the encoder normalizes each part by itself."""
    precision: Precision = "auto"
    """Precision of encoder and head. auto: bf16 if the processor supports it and a test finds it correct, else fp32."""
    seed: int = 0
    """Seed of the initialization, the batch order and the views."""
    monitor: Annotated[str | None, _default("the source itself, if it has labels", "SOURCE")] = None
    """Labeled images for the kNN score during training."""
    keep_every: Annotated[int | None, _default("only the last two", "EPOCHS")] = None
    """Keep a checkpoint at this interval of epochs."""
    cache_gib: float = 4.0
    """Size of the cache of decoded images, in GiB. A set that does not fit is decoded again in each epoch."""
    value_range: ValueRange = None
    """The numbers that are black and white, in images of more than 8 bits per channel; the encoder keeps them."""
    max_pixels: MaxPixels = None
    """Pixels of the largest image that is read; larger ones are skipped and counted."""
    channels: Channels = None
    """Channels of an image: 3 for RGB, 1 for gray, or as many as the files have bands, in their order (at most 16)."""
    damaged_shards: DamagedShards = None
    """What to do with a missing, truncated or corrupt shard: refuse the source, or skip the shard's images."""

    @property
    def reading(self) -> Reading:
        """How image files are read."""
        return Reading(self.value_range, self.max_pixels, self.channels, self.damaged_shards)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", self.loss.replace("_", "-"))  # nt_xent is understood too


class PretrainOptions(TypedDict, total=False):
    """The settings of `PretrainConfig` as keyword arguments of `pretrain`."""

    encoder: Any
    stem: Stem
    weights: str | None
    mean_std: str | None
    normalize_h: bool
    batchnorm: BatchNorm | None
    checkpoint_activations: bool
    policy: Any
    views: int
    size: int | None
    test_scale: float | None
    strength: float | tuple[float, ...] | None
    blur: float | None
    warp: float | None
    min_area: float | None
    interpolation: Interpolation | None
    progressive: bool
    loss: str
    teacher: str | None
    temperature: float | None
    loss_scale: float
    balanced: bool
    head: str | None
    linear_epochs: int
    optimizer: OptimizerName
    lr: float | None
    lr_scaling: Scaling
    weight_decay: float | None
    warmup: float | None
    epochs: Number | None
    minutes: Number | None
    batch_size: int
    micro_batch: int | None
    precision: Precision
    seed: int
    monitor: str | None
    keep_every: int | None
    cache_gib: float
    value_range: Range | None
    max_pixels: int | None
    channels: int | None
    damaged_shards: str | None


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(PretrainConfig):
    """Settings with everything decided before step 1: a resumed run uses the same.

    `field()` takes away the default that a setting has in `PretrainConfig`.
    """

    encoder: str = field()
    size: int = field()
    min_area: float = field()
    interpolation: Interpolation = field()
    temperature: float = field()
    lr: float = field()
    weight_decay: float = field()
    warmup: float = field()
    epochs: Number = field()
    precision: Literal["bf16", "fp32"] = field()
    batchnorm: BatchNorm = "batch"
    test_scale: float = 1.0

    @property
    def test_size(self) -> int:
        """Side of a whole image where the trained encoder represents it, in pixels."""
        return round(self.test_scale * self.size)


@dataclass(frozen=True, kw_only=True)
class RunConfig(ResolvedConfig):
    """config.json: the settings of a run as decided, its images, and the machine that it began on."""

    features: int
    """Width F of the representation."""
    source: str | list[str]
    """Where the images are; a list where there are several sources."""
    classes: list[str]
    """The classes that were chosen among the images'; empty where none were."""
    labeled: int
    limit: int | None
    images: int
    skipped: int
    names_checksum: str
    """The checksum of the images' names: a run resumes on the same images only."""
    steps_per_epoch: int
    renderer: Literal["numba", "torch"]
    threads: int
    ranks: int
    device: str
    memory_format: str = "channels_last"
    began_as: str | None = None
    """timm:NAME where the weights were timm's when training began, or empty. None in runs of earlier versions."""
    labels: list[str] = field(default_factory=list)
    """The tables that the labels are from, which labels.csv repeats; empty where they are the source's own."""
    split: str | None = None
    """The split of the tables that the images are of; None where there is none."""
    labels_checksum: str | None = None
    """The checksum of the images' labels: a run resumes with the same labels only. None in runs of earlier versions."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def source_text(self) -> str:
        """Where the images are, in words."""
        return as_words(self.source)

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        return total_steps(self.epochs, self.steps_per_epoch)

    def settings(self) -> PretrainConfig:
        """The settings alone, to begin another run like this one; where minutes decided the epochs, the minutes."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        return PretrainConfig(**settings | ({"epochs": None} if self.minutes else {}))

    @property
    def sources(self) -> list[str]:
        """Where the images are, one by one."""
        return self.source if isinstance(self.source, list) else [self.source]

    def write(self, run: Path) -> None:
        """Write config.json in the run's folder, all or nothing."""
        text = json.dumps(asdict(self), indent=2)
        write_whole(run / CONFIG_FILE, lambda file: file.write(text.encode()))

    @classmethod
    def read(cls, run: Path) -> "RunConfig | None":
        """config.json of the run in that folder; None where there is none. Raises StepclrError if it is corrupt."""
        path = run / CONFIG_FILE
        try:
            stored = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):  # the second for the path of a file
            return None
        except (ValueError, RecursionError) as error:
            raise StepclrError(f"{path} is corrupt: {fault_of(error)}") from None
        if isinstance(stored, dict):
            stored = OLDER | stored
        return from_json(cls, stored, path)


SETTINGS = tuple(setting.name for setting in fields(PretrainConfig))
