"""Steps 3 and 4 on a page: the shapes through encoder and head, and what is thrown away afterwards."""

from typing import Any

import torch
from torch import Tensor, nn

from stepclr.errors import StepclrError
from stepclr.tools.report.context import Material

Json = dict[str, Any]


def network(made: Material) -> Json:
    """A row a part: its name, what comes out, its weights, and whether it stays."""
    encoder, size = made.encoder, made.encoder.size
    found: Json = {
        "name": encoder.name,
        "stem": encoder.stem,
        "features": encoder.num_features,
        "size": size,
        "head": [],
    }
    x = torch.zeros(2, 3, size, size, device=encoder.mean.device)
    found["encoder"] = [{"name": "view", "shape": _shape(x), "weights": 0}, *_parts(encoder.body, x)]
    if encoder.normalize_h:
        found["encoder"].append({"name": "h, of unit norm", "shape": f"[N, {encoder.num_features}]", "weights": 0})
    found["weights"] = _weights(encoder)
    try:
        if made.contrastive:
            with torch.inference_mode():
                h = encoder(x)
            found["head"] = _parts(made.trained.head, h)
    except StepclrError as error:
        found["why"] = str(error)
    return found


def _parts(module: nn.Module, x: Tensor) -> list[Json]:
    """The parts of a network that work on x one after the other, and the shape that comes out of each."""
    rows: list[Json] = []

    def seen(name: str) -> Any:
        def hook(part: nn.Module, _: object, out: Any) -> None:
            if isinstance(out, Tensor) and not isinstance(part, nn.Identity):
                rows.append({"name": f"{name}: {_kind(part)}", "shape": _shape(out), "weights": _weights(part)})

        return hook

    hooks = [part.register_forward_hook(seen(name)) for name, part in module.named_children()]
    try:
        with torch.inference_mode():
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _kind(part: nn.Module) -> str:
    children = list(part.children())
    blocks = f"{len(children)} x {type(children[0]).__name__}" if isinstance(part, nn.Sequential) and children else ""
    return blocks or type(part).__name__


def _shape(x: Tensor) -> str:
    return f"[{', '.join(map(str, ['N', *x.shape[1:]]))}]"


def _weights(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
