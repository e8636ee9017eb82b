"""Steps 3 and 4 on a page: the shapes through encoder and head, and what is discarded after pretraining."""

from typing import Any

import torch
from torch import Tensor, nn

from stepclr.errors import StepclrError
from stepclr.tools.report.context import Context

Json = dict[str, Any]


KINDS = {  # the beginning of a module's class, and what it is
    "Conv": "convolution",
    "BatchNormAct": "batch norm, ReLU",
    "BatchNorm": "batch norm",
    "ReLU": "ReLU",
    "MaxPool": "max pooling",
    "SelectAdaptivePool": "average pooling",
    "GlobalPool": "average pooling",
    "Linear": "linear",
    "BasicBlock": "residual block",
    "Bottleneck": "residual block",
    "PatchEmbed": "patches",
    "Block": "transformer block",
    "LayerNorm": "layer norm",
}


def network(context: Context) -> Json:
    """The parts of encoder and head, one row each: name, shape of the output, number of weights."""
    if context.no_encoder:
        return {"missing": context.no_encoder, "name": context.config.encoder, "size": context.config.size}
    encoder = context.encoder
    x = torch.zeros(2, encoder.channels, encoder.size, encoder.size, device=encoder.mean.device)
    rows = [{"name": "view", "shape": _shape(x), "weights": 0}, *_parts(encoder.body, x)]
    if encoder.normalize_h:
        rows.append({"name": "h, of unit norm", "shape": f"[N, {encoder.num_features}]", "weights": 0})
    section: Json = {
        "name": encoder.name,
        "stem": encoder.stem,
        "features": encoder.num_features,
        "size": encoder.size,
        "weights": _weights(encoder),
        "encoder": rows,
        "head": [],
    }
    if context.contrastive:
        try:
            head = context.trained.head  # outside: weights that are made in inference mode cannot be trained
            with torch.inference_mode():
                section["head"] = _parts(head, encoder(x))
        except StepclrError as error:
            section["why"] = str(error)
    return section


def _parts(module: nn.Module, x: Tensor) -> list[Json]:
    """The parts of a network that are applied to x in turn, with the shape of the output of each."""
    rows: list[Json] = []

    def record(name: str) -> Any:
        def hook(part: nn.Module, _: object, out: Any) -> None:
            if isinstance(out, Tensor) and not isinstance(part, nn.Identity):
                rows.append({"name": f"{name}: {_kind(part)}", "shape": _shape(out), "weights": _weights(part)})

        return hook

    hooks = [part.register_forward_hook(record(name)) for name, part in module.named_children()]
    try:
        with torch.inference_mode():
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _kind(part: nn.Module) -> str:
    """What a part is, in words; for a network of other parts the name of its class."""
    if isinstance(part, nn.Sequential) and len(part):
        kind = _kind(part[0])
        return kind if len(part) == 1 else f"{len(part)} x {kind}"
    name = type(part).__name__
    return next((words for beginning, words in KINDS.items() if name.startswith(beginning)), name)


def _shape(x: Tensor) -> str:
    return "[" + ", ".join(["N", *map(str, x.shape[1:])]) + "]"


def _weights(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
