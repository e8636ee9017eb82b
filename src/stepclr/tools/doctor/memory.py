"""How many images of another run fit into memory: the measured number, by what either network keeps of an image."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from stepclr.config import ResolvedConfig
from stepclr.data.reading import RGB
from stepclr.model.build import OWN_MODULE, build_encoder
from stepclr.model.encoder import DOES_NOT_FIT


def fitting(largest: int | None, measured: ResolvedConfig, encoder: str, stem: str, size: int) -> int | None:
    """How many images of two views fit into memory at once in this encoder, if `largest` of the measured run do.

    Memory grows with the activations that are kept for the backward pass. None where it is not known: if nothing was
    measured, or a module of one's own, a run that computes activations again, or a network that cannot be counted.
    """
    if largest is None or measured.encoder.startswith(OWN_MODULE) or measured.checkpoint_activations:
        return None
    channels = measured.channels or RGB
    try:
        theirs = measured.views * kept_bytes(measured.encoder, measured.stem, measured.size, channels)
    except DOES_NOT_FIT:  # without values, which some networks look at
        return None
    return largest * theirs // (2 * kept_bytes(encoder, stem, size, channels))


def kept_bytes(encoder: str, stem: str, size: int, channels: int) -> int:
    """Bytes of float32 activations that one view leaves for the backward pass; counted, and nothing is computed."""
    with torch.device("meta"):
        body = build_encoder(encoder, stem, size=size, channels=channels).body
        views = torch.empty(2, channels, size, size)  # BatchNorm does not take one alone
    own = {tensor.untyped_storage()._cdata for tensor in (*body.parameters(), *body.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        body.train()(views)
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own) // len(views)
