"""What the commands are given: types of arguments, and the settings and images that these stand for."""

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from stepclr.cli.printing import note
from stepclr.config import SETTINGS, PretrainConfig, RunConfig
from stepclr.data.reading import AS_DECLARED, Reading
from stepclr.errors import StepclrError
from stepclr.recipes import recipe_config

if TYPE_CHECKING:
    from PIL import Image

    from stepclr.data.images import ImageSet

ALL = "(default: all)"
Source = Annotated[str, arg(metavar="SOURCE")]
# A switch of a command. A setting that is on or off may be on already, in a recipe or in a run that is resumed.
Switch = FlagCreatePairsOff[bool]
# The settings whose options were typed: the parser does not tell one that equals the recipe's from one left out.
_TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())

# One SOURCE, or several as a list.
_SOURCES = PrimitiveConstructorSpec(
    nargs="*",
    metavar="SOURCE [SOURCE ...]",
    instance_from_str=lambda words: words[0] if len(words) == 1 else words,
    is_instance=lambda value: value is None or isinstance(value, str | list),
    str_from_instance=lambda value: [value] if isinstance(value, str) else list(value or []),
)
Sources = Annotated[str | list[str], _SOURCES]
OptionalSources = Annotated[str | list[str] | None, _SOURCES]
# These bring their help, because they mean the same in every command.
Images = Positional[
    Annotated[
        Sources,
        arg(
            help="Images: a folder, a zip file, shards, NAME:SPLIT, image files, or several of these.",
            help_behavior_hint="(one or more)",
        ),
    ]
]
EncoderName = Positional[
    Annotated[
        Path,
        arg(
            metavar="RUN|FILE|timm:NAME",
            help="The encoder: a run's folder, an encoder.safetensors, or timm:NAME (pretrained, off the shelf).",
        ),
    ]
]
Names = Annotated[
    str | None,
    arg(metavar="NAME,NAME,...", help="Keep only the labeled images of these classes.", help_behavior_hint=ALL),
]
LabelFiles = Annotated[
    tuple[Path, ...],
    arg(
        metavar="FILE [FILE ...]",
        help="Tables (.csv, .tsv, .parquet) with the columns path and label, whose labels replace those of folders.",
        help_behavior_hint="(default: the source's own labels)",
    ),
]
Read = Annotated[Reading, arg(name="reading")]
Holdout = Annotated[
    float | None,
    arg(
        metavar="SHARE",
        help="Instead of --test, hold out this share of each class of --train, such as 0.2, and score on it.",
        help_behavior_hint="(default: none)",
    ),
]
Limit = Annotated[int | None, arg(metavar="N", help="Keep at most this many images.", help_behavior_hint=ALL)]


def base_settings(recipe: str | None, resumed: Path | None = None) -> PretrainConfig:
    """The settings that options change: those of a run that is resumed, or of a recipe."""
    stored = RunConfig.read(resumed) if resumed else None
    return stored.settings() if stored else recipe_config(recipe)


def note_typed(arguments: Sequence[str]) -> None:
    """Note, for `given_settings`, the settings whose options are among the words that were typed."""
    options = (word.partition("=")[0] for word in arguments if word.startswith("--"))
    names = [option.removeprefix("--").replace("-", "_") for option in options]
    _TYPED.set(tuple(name for name in SETTINGS if name in names or f"no_{name}" in names))


def given_settings(config: PretrainConfig, base: PretrainConfig) -> dict[str, Any]:
    """The settings that the options give: those that were typed, and others in which `config` differs from `base`."""
    differ = [name for name in SETTINGS if getattr(config, name) != getattr(base, name)]
    return {name: getattr(config, name) for name in SETTINGS if name in _TYPED.get() or name in differ}


def open_source(
    source: str | list[str],
    classes: str | None = None,
    limit: int | None = None,
    reading: Reading = AS_DECLARED,
    labels: tuple[Path, ...] = (),
    labels_elsewhere: bool = False,
) -> "ImageSet":
    """`open_images` with the arguments of the command line; standard error says what is in the source.

    labels_elsewhere: as for `heading`.
    """
    from stepclr.data.sources import open_images

    images = open_images(source, classes=classes or None, limit=limit, labels=labels or None, **asdict(reading))
    return _noted(images, labels_elsewhere)


def open_train_test(
    train: str | list[str],
    test: str | list[str] | None,
    labels: tuple[Path, ...],
    reading: Reading,
    holds_out: bool = True,
) -> "tuple[ImageSet, ImageSet | None]":
    """The images to learn from and, if any, to score on; standard error says what is in them."""
    from stepclr.data import sources

    learned, scored = sources.open_train_test(train, test, labels or None, holds_out=holds_out, reading=reading)
    return _noted(learned), _noted(scored) if scored else None


def _noted(images: "ImageSet", labels_elsewhere: bool = False) -> "ImageSet":
    """Print on standard error what the images are, and return them."""
    from stepclr.data.labels import heading

    note(*heading(images, labels_elsewhere).split("\n"))
    return images


def image_format(out: Path, option: str = "--out") -> str:
    """Pillow's name of the format that the suffix of --out stands for; StepclrError if it stands for none."""
    from PIL import Image

    extensions = Image.registered_extensions()
    if extensions.get(out.suffix.lower()) not in Image.SAVE:  # Pillow reads others too
        raise StepclrError(f"{option} {out} is not an image format; use a suffix such as .png")
    return extensions[out.suffix.lower()]


def check_apart(out: Path, read: str | Iterable[str | Path], option: str = "--out") -> None:
    """Raise StepclrError where the image to write is one that the command reads: such a file, or in such a folder."""
    for place in map(Path, [read] if isinstance(read, str) else read):
        if out.exists() and place.exists():
            inside = place.is_dir() and out.resolve().is_relative_to(place.resolve())
            if inside or out.samefile(place):
                raise StepclrError(f"{out} is one of the images and would be overwritten; choose another {option}")


def write_image(out: Path, image: "Image.Image", name: str) -> None:
    """Write an image in the format of that name, whole or not at all; StepclrError where it is too large for that."""
    from stepclr.io import write_whole

    try:
        write_whole(out, lambda file: image.save(file, name))
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None):  # of the system, such as a full disk
            raise
        size = f"{image.width:,} x {image.height:,} pixels"
        raise StepclrError(f"{out}: {name} cannot hold an image of {size}; use the suffix .png") from error


def first_line(command: Callable[..., Any]) -> str:
    """The first line of a command's docstring."""
    return (command.__doc__ or "").split("\n")[0]
