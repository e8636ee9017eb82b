"""What pretraining has to beat: the pixels themselves, and the same network with the weights it began with."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stepclr.data.images import ImageSet
from stepclr.model.encoder import Encoder, build_encoder

SIDE = 32  # pixels: more of them would only slow linear evaluation down
BATCH = 256
PIXELS = f"the encoder's center crop, reduced (antialiased) to at most {SIDE} px a side, flattened"
RANDOM = f"a new initialization a draw; BatchNorm statistics by one pass over all of train, in batches of about {BATCH}"


class _Pixels(nn.Module):
    """An image is its own representation."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.num_features = side, 3 * side**2

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n features"]:
        if x.shape[-1] != self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        return x.flatten(1)


def pixels(encoder: Encoder) -> Encoder:
    """An encoder whose h is the pixels of `encoder.preprocess`, so that both meet the same crop."""
    body = _Pixels(min(SIDE, encoder.size))
    made = Encoder(body, "pixels", "own", encoder.size)
    return made.to(encoder.mean.device)


def fresh(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture and preprocessing, newly initialized from `seed`; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = build_encoder(encoder.name, encoder.stem, size=encoder.size, normalize_h=encoder.normalize_h)
    made = made.to(encoder.mean.device)
    made.mean.copy_(encoder.mean)
    made.std.copy_(encoder.std)
    return made


def set_batchnorm_statistics(encoder: Encoder, images: ImageSet) -> None:
    """Give every BatchNorm the mean of its batch statistics over one pass of `images`; leaves the encoder in eval mode.

    Without it a new network normalizes by mean 0 and variance 1, which its features do not have.
    """
    encoder.eval()
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    # Nearly equal batches: a small last one would weigh as much as the others.
    for part in np.array_split(np.arange(len(images)), -(-len(images) // BATCH)) if norms else []:
        with torch.inference_mode():
            encoder(encoder.preprocess(images.read(part)).contiguous(memory_format=torch.channels_last))
    encoder.eval()
