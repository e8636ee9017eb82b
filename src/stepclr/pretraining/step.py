"""Algorithm 1 of SimCLR: one training step, from a batch of images to the loss.

Every run executes this function: `loop.py` puts automatic mixed precision around it, DistributedDataParallel calls it
through `model.py`, and a large batch takes `gradcache.py`'s function of the same signature instead.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stepclr.data.images import ImageBatch
from stepclr.loss.objectives import BoundLoss


def simclr_step(
    encoder: nn.Module,
    head: nn.Module,
    views: Callable[[ImageBatch, Int64[Tensor, " n"]], Float[Tensor, "v n c s s"]],
    objective: BoundLoss,
    images: ImageBatch,
    keys: Int64[Tensor, " n"],
    labels: Tensor,
) -> tuple[Float[Tensor, ""], tuple[Tensor, ...]]:
    """A batch of N images -> (the loss, the projections of each of its V views).

    Args:
        encoder, head: f and g of the paper.
        views: (images, keys) -> V random views of each image; a key says which.
        objective: (projections, labels) -> the loss: NT-Xent, or another row of `loss/objectives.py`.
        images: uint8 `[N, 3, H, W]`, or a list of `[3, H, W]`.
        labels: int64 `[N]` (-1: none); with a teacher, the teacher's logits `[V N, C]` of the same views.

    With several processes, each passes its own N images; the loss is over the images of all of them.
    """
    # fmt: off
    view_i, *view_j = views(images, keys)               # t, t' ~ T           [N, 3, S, S] each
    h = encoder(torch.cat([view_i, *view_j]))           # representation      [V N, F]
    z = head(h).chunk(1 + len(view_j))                  # projections         V of [N, D]
    loss = objective(z, labels)                         # eq. 1
    # fmt: on
    return loss, z
