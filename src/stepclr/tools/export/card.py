"""The card of an exported file: what it is, how to load it, what it was trained on, how it scored, its limits."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stepclr.config import SETTINGS, RunConfig
from stepclr.data.reading import RGB
from stepclr.errors import StepclrError, fault_of, one_line
from stepclr.evaluation.results import EVALUATION, FINETUNING
from stepclr.evaluation.stored import read_scores
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import STRIP, Encoder
from stepclr.model.files import load_encoder, state_checksum
from stepclr.model.timm_weights import pretrained, timm_name
from stepclr.model.weights import ENCODER_FILE
from stepclr.tools.export.formats import FORMATS, Network, encoder_of, out_of
from stepclr.tools.notes import notes
from stepclr.tools.scores import MEASURES, percents, shown_measures

PACKAGES = ("stepclr", "torch", "torchvision", "timm", "safetensors")


@dataclass(frozen=True)
class Parity:
    """The largest difference between the file's features and the original's, relative to the largest feature."""

    difference: float
    images: int
    source: str

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e} of the largest feature, on {self.images} images of {self.source}"
        )


def card(source: Path, network: Network, name: str, format: str, code: str, parity: Parity) -> str:
    """The card, in Markdown. source: the encoder or classifier file, in whose folder a run's other files may be."""
    of_timm = timm_name(source) is not None
    config = None if of_timm or not _of_the_run_beside(source, network) else RunConfig.read(source.parent)
    unknown = "Unknown: the weights were not in the folder of their run."
    if of_timm:
        unknown = f"Those of {plain(encoder_of(network).weights)}, which timm describes."
    what, original = "encoder", "stepclr.embed"
    if isinstance(network, Classifier):
        what, original = "classifier", "stepclr predict, before its softmax"
    sections = {
        "Load it": _loading(name, code),
        "Images": _preprocessing(network, format),
        "The same as the original": [f"Loaded as above and compared with `{original}`: {plain(str(parity))}."],
        "Data": _data(config, network) if config else [unknown],
        "Recipe": _recipe(config) if config else [unknown],
        "Scores and protocol": _scores(source, network),
        "Limits": _limits(network, parity),
        "Versions": [", ".join(f"{package} {version(package)}" for package in PACKAGES + FORMATS[format].packages)],
        "Licence": _license(encoder_of(network)),
    }
    lines = [f"# {plain(name)}", "", _what(network, what, format, of_timm)]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _of_the_run_beside(source: Path, network: Network) -> bool:
    """Whether this is the run's own encoder, or a classifier of it, and no encoder of another that was put there."""
    own = source.with_name(ENCODER_FILE)
    if isinstance(network, Classifier) or source == own or not own.is_file():
        return True
    with suppress(StepclrError):
        return state_checksum(load_encoder(own).state_dict()) == state_checksum(network.state_dict())
    return False


def plain(text: object) -> str:
    """Text from outside, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~&])", r"\\\1", one_line(str(text)))


def _what(network: Network, what: str, format: str, of_timm: bool) -> str:
    encoder, out = encoder_of(network), out_of(network)
    width = len(network.classes) if isinstance(network, Classifier) else encoder.num_features
    normalized = ", of unit norm" if encoder.normalize_h and out == "h" else ""
    trained = plain(encoder.weights) if of_timm else "a SimCLR run"
    shape = f"[n, {encoder.channels}, {encoder.test_size}, {encoder.test_size}]"
    return (
        f"The {what} of {trained}, as {format}: {plain(encoder.name)} with the stem {encoder.stem}, images "
        f"`{shape}` -> {out} `[n, {width}]`{normalized}, float32."
    )


def _loading(name: str, code: str) -> Iterator[str]:
    yield from ("```python", f"path = {name!r}", "", *code.splitlines(), "```")
    yield ""
    yield "`images` is a uint8 tensor, made as the next section describes."


def _preprocessing(network: Network, format: str) -> Iterator[str]:
    encoder = encoder_of(network)
    size, side = encoder.test_size, encoder.side
    sides = f"[round(length * {side} / min(x.shape[-2:])) for length in x.shape[-2:]]"
    if encoder.squash:
        sides = f"[{side}, {side}]"
    mean, std = (", ".join(map(str, buffer.flatten().numpy())) for buffer in (encoder.mean, encoder.std))
    upright, kind, opaque, from_image = _input(encoder.channels)
    inside = "inside the file" if format in ("onnx", "torch-export") else "in the code above"
    yield (
        f"Resizing is not included: {upright}, {encoder.resizing}, in 8 bits; of an image more than {STRIP} times as "
        f"long as wide, only the middle is used. Dividing by 255, mean ({mean}) and std ({std}) are {inside}."
    )
    yield ""
    yield from _before(encoder)
    yield ""
    yield from f"""\
```python
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import InterpolationMode, functional

def pixels(image):  # {kind} -> uint8 [1, {encoder.channels}, {size}, {size}]
{opaque}    x = {from_image}[None].float() / 255
    sides = {sides}
    x = functional.resize(x, sides, InterpolationMode.{encoder.interpolation.upper()}, antialias=True).clamp(0, 1)
    return (functional.center_crop(x, [{size}, {size}]) * 255).round().to(torch.uint8)

images = torch.cat([pixels(image) for image in photos])
```""".splitlines()
    if isinstance(network, Classifier):
        yield ""
        yield "The classes of the logits, in order: " + ", ".join(map(plain, network.classes)) + "."
        yield "`stepclr predict` writes the softmax of the logits."


# Of an image with transparency; one of more bits would be converted to nearly white.
OPAQUE = """\
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        raise ValueError("this image has more than 8 bits: convert it first")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
"""


def _input(channels: int) -> tuple[str, str, str, str]:
    """What the images are; what `pixels` takes, what it does first, and how it makes a tensor `[C, H, W]` of it."""
    if channels not in (1, RGB):
        from_array = "torch.from_numpy(image).permute(2, 0, 1)"
        return f"{channels} channels in 8 bits", "a uint8 array [H, W, C]", "", from_array
    mode = "RGB" if channels == RGB else "L"
    words = "upright RGB" if channels == RGB else "upright gray (one channel)"
    return words, "a PIL image", OPAQUE, f'functional.pil_to_tensor(image.convert("{mode}"))'


def _before(encoder: Encoder) -> Iterator[str]:
    """What the code for the pixels does not do."""
    deep = "their own black becomes 0 and their own white 255"
    if encoder.value_range:
        black, white = encoder.value_range
        deep = f"{black:g} becomes 0 and {white:g} becomes 255, and others are clipped"
    yield f"Images of more than 8 bits a channel are to be converted first: {deep}."
    if encoder.channels in (1, RGB):
        yield "Transparent parts lie over white; in training, those of a light drawing lay over black."


def _data(config: RunConfig, network: Network) -> Iterator[str]:
    classes = encoder_of(network).classes
    yield f"- Pretrained on: {plain(config.source_text)}"
    if config.weights:
        yield f"- Training began with the weights: {plain(config.weights)}"
    yield f"- Images: {config.images:,}, labeled {config.labeled:,}"
    yield f"- Images that could not be read: {config.skipped:,}"
    if config.value_range:
        black, white = config.value_range
        yield f"- Images of more than 8 bits: {black:g} became 0 and {white:g} became 255, others were clipped"
    if config.channels != RGB:
        yield f"- Channels of an image: {config.channels}, in the order of the bands of its file"
    yield "- Classes chosen: " + (", ".join(map(plain, classes)) or "none")


def _license(encoder: Encoder) -> list[str]:
    lines = ["Your weights are yours: stepclr's code is MIT-licensed and claims no rights to what you train with it."]
    name = timm_name(encoder.weights)
    if name is not None:
        license = "not known"
        with suppress(StepclrError):  # timm of another version may lack the name
            license = pretrained(name).license or license
        lines.append(f"The encoder is, or began as, {plain(encoder.weights)}, whose license is {plain(license)}.")
    return lines


def _recipe(config: RunConfig) -> Iterable[str]:
    rows = [(name, getattr(config, name)) for name in (*SETTINGS, "steps_per_epoch", "ranks", "device")]
    return _table(("setting", "value"), [row for row in rows if row[1] is not None])


def _scores(source: Path, network: Network) -> Iterator[str]:
    path = source.parent / (FINETUNING if isinstance(network, Classifier) else EVALUATION)
    if timm_name(source) is not None or not path.is_file():
        yield f"None: there is no {path.name} beside these weights."
        return
    scores = read_scores(path, of_classifier=isinstance(network, Classifier))
    try:
        protocol = scores.protocol
        if of_others := _of_others(protocol, network):
            yield f"None: the scores in {path.name} belong to {of_others}."
            return
        shown = shown_measures(scores)
        rows = [
            (row.method, row.labels_per_class, *(percents(row, measure) for measure in shown), len(row.values))
            for row in scores.rows
        ]
        measures = [MEASURES[measure] for measure in shown]
        yield from _table(("method", "labels per class", *measures, "label splits"), rows)
        yield ""
        for name in ("train", "test"):
            if protocol[name]:
                yield f"- {name}: {plain(protocol[name]['source'])}, {protocol[name]['images']:,} images"
        for words in notes(scores):
            yield f"- {plain(words)}"
        yield f"- classes: {', '.join(map(plain, protocol['classes']))}"
        yield f"- {plain(protocol['std'])}; seed {protocol['seed']}; test labels {plain(protocol['test_labels'])}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StepclrError(f"{path} is corrupt: {fault_of(error)}") from None


def _of_others(protocol: dict[str, Any], network: Network) -> str:
    """What the scores of this protocol are of, where not of the exported network; else empty."""
    weights = state_checksum(network.state_dict())
    if isinstance(network, Classifier):
        return "" if protocol["classifier"].get("sha256") == weights else "other weights"
    if protocol["encoder_sha256"]["after"] != weights:
        return "other weights"
    size = protocol.get("test_size") or network.size  # earlier versions scored at that of the views
    return "" if size == network.test_size else "images of another size"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(plain, row))} |"


def _limits(network: Network, parity: Parity) -> Iterator[str]:
    encoder = encoder_of(network)
    size = f"{encoder.test_size} px"
    if encoder.test_size != encoder.size:
        size += f", from views of {encoder.size} px"
    yield "- Tested only as listed under Scores; how well it works on other kinds of images is unknown."
    yield "- It inherits the biases of the images that it was trained on, which nobody has looked for."
    yield f"- Made for {size}; other sizes, and arithmetic below float32, were not compared."
    yield f"- Compared with the original on one CPU, on {parity.images} images that were resized beforehand."
