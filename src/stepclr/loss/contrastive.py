"""Step 5: one contrastive loss of (projections, groups); NT-Xent and SupCon are two ways to choose the groups.

    L = 1/A sum_i [ log sum_{a != i} exp(z_i.z_a / tau)  -  1/|P(i)| sum_{p in P(i)} z_i.z_p / tau ]

over the A anchors i that have a positive; P(i) are the other projections of i's group. With images as groups this
is NT-Xent (SimCLR eq. 1), with labels SupCon's L_out (SupCon eq. 2). It is the mean over anchors, as in the papers:
the authors' SimCLR code returns twice this (the sum of two means), SupContrast's multiplies by tau/0.07.

Positives enter through their group's sum alone, so the M x M part knows no labels: `tiles.py` takes it tile by tile.

Many ranks contrast the projections of them all (`ranks`): each brings its own and gets the loss of all, whose gradient
on its own rows is exact, times the number of ranks, since DistributedDataParallel takes the mean. Projections, group
ids and M sums are exchanged on the way forward, and nothing on the way back.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stepclr.distributed import ALONE, World
from stepclr.errors import StepclrError
from stepclr.loss.tiles import MeanLogSum


def nt_xent(
    z_i: Float[Tensor, "n d"],
    z_j: Float[Tensor, "n d"] | Sequence[Float[Tensor, "n d"]],
    temperature: float = 0.5,
    world: World = ALONE,
) -> Float[Tensor, ""]:
    """NT-Xent (SimCLR eq. 1), the mean over the anchors: row k of z_i and row k of z_j are views of one image.

    Args: z_i, z_j: projections of any length and floating type; normalized and reduced in float32 (float64 stays).
    With more than two views, z_j is the list of those of all the others: each is then a positive of each.
    Returns: a scalar, log(2N - 1) where all projections of two views coincide.
    Raises: StepclrError for shapes that differ or a temperature that is not above 0.
    """
    z, views = _stack(z_i, z_j)
    return contrastive(z, _own_ids(z_i, world).repeat(views), temperature, world=world)


def supcon(
    z_i: Float[Tensor, "n d"],
    z_j: Float[Tensor, "n d"] | Sequence[Float[Tensor, "n d"]],
    labels: Int[Tensor, " n"] | Int[np.ndarray, " n"],
    temperature: float = 0.1,
    world: World = ALONE,
) -> Float[Tensor, ""]:
    """SupCon's L_out (eq. 2): all views with an anchor's label are its positives.

    An image without a label (-1) is its own class, so one call serves labelled, unlabelled and mixed batches; with no
    label at all it is `nt_xent`. Arguments, result and errors otherwise as there.
    """
    z, views = _stack(z_i, z_j)
    labels = torch.as_tensor(labels, device=z_i.device)
    if len(labels) != len(z_i):
        raise StepclrError(f"{len(z_i)} images but {len(labels)} labels")
    groups = torch.where(labels < 0, -1 - _own_ids(z_i, world), labels)
    return contrastive(z, groups.repeat(views), temperature, world)


def contrastive(
    z: Float[Tensor, "m d"],
    groups: Int[Tensor, " m"] | Int[np.ndarray, " m"],
    temperature: float,
    world: World = ALONE,
) -> Float[Tensor, ""]:
    """The equation at the head of this file.

    Args:
        z: projections `[M, D]`, of any length and floating type; normalized and reduced in float32 (float64 stays).
        groups: int64 `[M]`; equal numbers are positives of each other.
        temperature: tau > 0.
        ranks: whose projections are contrasted together; `z` and `groups` are those of this one.

    Anchors without a positive are left out of the mean; where none has one, the loss is 0 and so is its gradient.
    """
    if not temperature > 0:
        raise StepclrError(f"temperature must be above 0, not {temperature}")
    groups = torch.as_tensor(groups, device=z.device)
    if z.ndim != 2:
        raise StepclrError(f"projections are [M, D], not {list(z.shape)}")
    if len(groups) != len(z):
        raise StepclrError(f"{len(z)} projections but {len(groups)} group ids")
    sizes = world.sizes(len(z))
    groups = world.gather(groups, sizes)
    ordered = groups.sort().values
    group = torch.searchsorted(ordered, groups)  # the place where i's group begins: a number for it below M
    count = torch.searchsorted(ordered, groups, right=True) - group - 1  # |P(i)|
    if len(groups) < 2:
        return z.sum() * 0
    with torch.autocast(z.device.type, enabled=False):
        z = world.together(F.normalize(z if z.dtype == torch.float64 else z.float()), sizes)
        anchor = (count > 0).double()  # for at a small temperature the loss is the difference of two large means
        weights = anchor / anchor.sum().clamp(min=1)  # 1/A
        log_sum: Tensor = MeanLogSum.apply(z, weights, temperature, world, sizes)
        others = torch.zeros_like(z).index_add(0, group, z)[group] - z  # summed over P(i)
        attraction = (z * others).sum(1) / temperature / count.clamp(min=1)
        return (log_sum - (weights * attraction).sum()).to(z.dtype)


def _own_ids(z_i: Float[Tensor, "n d"], world: World) -> Int[Tensor, " n"]:
    """A number for each image that no image of another rank has."""
    return torch.arange(len(z_i), device=z_i.device) * world.size + world.rank


def _stack(z_i: Tensor, z_j: Tensor | Sequence[Tensor]) -> tuple[Tensor, int]:
    """All views' projections, one view after another, and how many views there are."""
    views = [z_i, z_j] if isinstance(z_j, Tensor) else [z_i, *z_j]
    for view in views:
        if view.shape != z_i.shape:
            raise StepclrError(f"the views' projections differ in shape: {list(z_i.shape)} and {list(view.shape)}")
    return torch.cat(views), len(views)
