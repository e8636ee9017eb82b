"""A frozen encoder over a whole `ImageSet`: the features that evaluation, monitoring and `embed` all use."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from stepclr.data import ImageSet
from stepclr.model.encoder import Encoder

Progress = Callable[[int, int], None]


def represent(
    encoder: Encoder,
    images: ImageSet,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "n features"], Int[np.ndarray, " n"]]:
    """h `[n, F]` in float32 of every readable picture, centre cropped, and the indices of those pictures.

    The encoder runs in eval mode without gradient and is handed back in the mode it came in. `dtype` bfloat16 runs it
    under autocast: faster, for monitoring; scores are always computed from float32.
    """
    device = encoder.mean.device
    training = encoder.training
    encoder.eval()
    rows: list[Tensor] = []
    kept: list[NDArray[np.int64]] = []
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for start in range(0, len(images), batch_size):
                indices = np.arange(start, min(start + batch_size, len(images)))
                pictures, readable = images.read_readable(indices)
                if len(readable):
                    x = encoder.preprocess(pictures).contiguous(memory_format=torch.channels_last)
                    rows.append(encoder(x).float().cpu())
                    kept.append(np.asarray(readable))
                if progress:
                    progress(int(indices[-1]) + 1, len(images))
    finally:
        encoder.train(training)
    if not rows:
        return torch.empty(0, encoder.num_features), np.empty(0, np.int64)
    return torch.cat(rows), np.concatenate(kept)
