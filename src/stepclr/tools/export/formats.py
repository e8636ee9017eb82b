"""Each format: how it is written, and the code that loads it without stepclr, which the card shows and `export` runs.

That code is given `path` and `images`, uint8 `[n, C, S, S]`, and computes `h`, or `logits`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import timm
import torch
import torchvision
from jaxtyping import Float, UInt8
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepclr.data.reading import RGB
from stepclr.errors import StepclrError
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.files import save_classifier, save_encoder

Network = Encoder | Classifier
MAX_ONNX_BYTES = 2**31 - 2**20  # an ONNX file is a protobuf message, and those are limited to 2 GiB
SCALED = "x = (images.float() / 255 - mean) / std"


@dataclass(frozen=True)
class Format:
    """The suffix of its files, `write(network, path)`, `code(network)`, and the packages that both need."""

    suffix: str
    write: Callable[[Network, Path], object]
    code: Callable[[Network], str]
    packages: tuple[str, ...] = ()


class FromPixels(nn.Module):
    """uint8 images `[n, C, S, S]` -> h or logits, preprocessing included."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: UInt8[Tensor, "n c s s"]) -> Float[Tensor, "n out"]:
        return self.network(images.float() / 255)


def encoder_of(network: Network) -> Encoder:
    return network.encoder if isinstance(network, Classifier) else network


def out_of(network: Network) -> str:
    """What the network computes: "h" `[n, F]` or "logits" `[n, C]`."""
    return "logits" if isinstance(network, Classifier) else "h"


def _write_own(network: Network, path: Path) -> None:
    if isinstance(network, Classifier):
        save_classifier(network, path)
    else:
        save_encoder(network, path)


def _own_code(network: Network) -> str:
    load = "load_classifier" if isinstance(network, Classifier) else "load_encoder"
    return f"""\
import stepclr, torch

network = stepclr.{load}(path)
with torch.inference_mode():
    {out_of(network)} = network(images.float() / 255)
"""


def _traced(network: Network) -> tuple[FromPixels, tuple[Tensor], tuple[dict[int, object]]]:
    """The module, two images to trace it on, and the statement that there may be any number of images."""
    side = encoder_of(network).test_size
    return (
        FromPixels(network).eval(),
        (torch.zeros(2, encoder_of(network).channels, side, side, dtype=torch.uint8),),
        ({0: torch.export.Dim("n")},),
    )


def _write_program(network: Network, path: Path) -> None:
    module, images, any_number = _traced(network)
    torch.export.save(torch.export.export(module, images, dynamic_shapes=any_number), path)


def _program_code(network: Network) -> str:
    return f"""\
import torch

program = torch.export.load(path).module()
with torch.inference_mode():
    {out_of(network)} = program(images)
"""


def _write_onnx(network: Network, path: Path) -> None:
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > MAX_ONNX_BYTES:
        raise StepclrError(f"{size / 1e9:.1f} GB of weights do not fit into one ONNX file: use format=torch-export")
    module, images, any_number = _traced(network)
    with sdpa_kernel(SDPBackend.MATH):  # the exporter gets the strides of fused attention wrong
        program = torch.onnx.export(
            module,
            images,
            dynamo=True,
            dynamic_shapes=any_number,
            input_names=["images"],
            output_names=[out_of(network)],
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


def _onnx_code(network: Network) -> str:
    return f"""\
import onnxruntime

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
({out_of(network)},) = session.run(None, {{"images": images.numpy()}})
"""


def _write_timm(network: Network, path: Path) -> None:
    encoder = encoder_of(network)
    if not timm.is_model(encoder.name):
        raise StepclrError(f"timm has no {encoder.name}: use format=onnx or format=torch-export")
    layer = encoder.body.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]  # timm's
    _write_plain(network, path, layer)


def _timm_code(network: Network) -> str:
    encoder = encoder_of(network)
    options = f", img_size={encoder.size}" if timm.get_pretrained_cfg_value(encoder.name, "fixed_input_size") else ""
    options += f", in_chans={encoder.channels}" if encoder.channels != RGB else ""
    return f"""\
import safetensors.torch, timm, torch

model = timm.create_model({encoder.name!r}, num_classes={_classes(network)}{options})
{_stem_code(encoder)}{_strict_code(network)}"""


def _stem_code(encoder: Encoder) -> str:
    """The lines that give timm's ResNet the stem of the encoder; none if it has timm's own."""
    body = encoder.body
    if not isinstance(body, ResNet) or encoder.stem == "own" or not isinstance(body.conv1, nn.Conv2d):
        return ""
    conv, pool = body.conv1, body.maxpool
    (side, stride, padding), width = (conv.kernel_size[0], conv.stride[0], conv.padding[0]), conv.out_channels
    pooling = "Identity()" if isinstance(pool, nn.Identity) else "MaxPool2d(3, stride=2, padding=1)"
    return (
        f"model.conv1 = torch.nn.Conv2d({conv.in_channels}, {width}, {side}, stride={stride}, padding={padding}, "
        "bias=False)\n"
        f"model.maxpool = torch.nn.{pooling}\n"
    )


def _write_torchvision(network: Network, path: Path) -> None:
    encoder = encoder_of(network)
    if not isinstance(encoder.body, ResNet) or encoder.name not in torchvision.models.list_models():
        nearest = "timm" if timm.is_model(encoder.name) else "onnx"
        raise StepclrError(f"torchvision has no ResNet {encoder.name}: use format={nearest}")
    if encoder.stem != "imagenet":
        raise StepclrError(f"torchvision's ResNets have no stem {encoder.stem}: use format=timm")
    if encoder.channels != RGB:
        raise StepclrError(f"torchvision's ResNets take RGB, not {encoder.channels} channels: use format=timm")
    _write_plain(network, path, "fc")


def _torchvision_code(network: Network) -> str:
    classes = f"num_classes={_classes(network)}" if _classes(network) else ""
    identity = "" if classes else "model.fc = torch.nn.Identity()\n"
    return f"""\
import safetensors.torch, torch, torchvision

model = torchvision.models.{encoder_of(network).name}({classes})
{identity}{_strict_code(network)}"""


def _classes(network: Network) -> int:
    return len(network.classes) if isinstance(network, Classifier) else 0


def _strict_code(network: Network) -> str:
    encoder, out = encoder_of(network), out_of(network)
    mean, std = (", ".join(map(str, buffer.flatten().numpy())) for buffer in (encoder.mean, encoder.std))
    model = "torch.nn.functional.normalize(model(x))" if encoder.normalize_h else "model(x)"
    return f"""\
model.load_state_dict(safetensors.torch.load_file(path), strict=True)
model.eval()
mean, std = torch.tensor([{mean}]).view(-1, 1, 1), torch.tensor([{std}]).view(-1, 1, 1)
with torch.inference_mode():
    {SCALED}
    {out} = {model}
"""


def _write_plain(network: Network, path: Path, layer: object) -> None:
    """The tensors under the library's own names; the linear layer of a classifier is named `layer`."""
    tensors = encoder_of(network).body.state_dict()
    if isinstance(network, Classifier):
        if network.kept_layers or network.encoder.normalize_h or not isinstance(layer, str):
            raise StepclrError(
                f"between {network.encoder.name} and its classes there is more than one linear layer: "
                "use format=onnx or format=torch-export"
            )
        tensors |= {f"{layer}.{name}": value for name, value in network.linear.state_dict().items()}
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


FORMATS = {
    "safetensors": Format(".safetensors", _write_own, _own_code),
    "torchvision": Format(".safetensors", _write_torchvision, _torchvision_code),
    "timm": Format(".safetensors", _write_timm, _timm_code),
    "onnx": Format(".onnx", _write_onnx, _onnx_code, ("onnx", "onnxscript", "onnxruntime")),
    "torch-export": Format(".pt2", _write_program, _program_code),
}
