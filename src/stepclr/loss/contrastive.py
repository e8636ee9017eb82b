"""Step 5: one contrastive loss of (projections, groups); NT-Xent and SupCon are two ways to choose the groups.

This is L_out of `reference.py`, with the logarithm of the quotient written as a difference:

    L = 1/A sum_i [ log sum_{a != i} exp(z_i.z_a / tau)  -  1/|P(i)| sum_{p in P(i)} z_i.z_p / tau ]

over the A anchors i that have a positive; P(i) are the other projections of i's group. With images as groups this
is NT-Xent (SimCLR eq. 1), with labels SupCon's L_out (SupCon eq. 2). It is the mean over anchors, as in the papers:
the authors' SimCLR code returns twice this (the sum of two means), SupContrast's multiplies by tau/0.07.

The first term is over all M x M pairs, but does not depend on the groups: `tiles.py` computes it tile by tile. The
second needs only the sum of each group's projections, so it takes M steps. Several ranks contrast the projections
of all of them: `World.gather_with_gradient` says how the gradient stays exact.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor

from stepclr.distributed import ALONE, World
from stepclr.errors import StepclrError, check_number, first_line
from stepclr.loss.tiles import Temperature, mean_log_sum, number

NT_XENT_TEMPERATURE, SUPCON_TEMPERATURE = 0.5, 0.1  # by default
MAX_POWERS = {torch.float32: 126, torch.float64: 1022}  # of 2


def nt_xent(
    z_i: Float[Tensor, "n d"],
    z_j: Float[Tensor, "n d"] | Sequence[Float[Tensor, "n d"]],
    temperature: Temperature = NT_XENT_TEMPERATURE,
    world: World = ALONE,
) -> Float[Tensor, ""]:
    """NT-Xent (SimCLR eq. 1), the mean over the anchors: row k of z_i and row k of z_j are views of one image.

    Args: z_i, z_j: projections `[N, D]` of any length and floating type. With more than two views, z_j is the list of
    the other views' projections, and all views of an image are positives of one another. temperature: a number, or a
    tensor of one element, which receives a gradient.
    Returns: a scalar; log(2N - 1) where all projections of two views coincide.
    Raises: StepclrError for shapes that differ, an empty list, or a temperature that is not above 0.
    Precision, ranks, second derivatives and `torch.compile`: see `contrastive`.
    """
    z, views = _stack(z_i, z_j)
    if views < 2:
        raise StepclrError("z_j is an empty list; NT-Xent needs at least two views of each image")
    return contrastive(z, image_ids(z_i, world).repeat(views), temperature, world)


def supcon(
    z_i: Float[Tensor, "n d"],
    z_j: Float[Tensor, "n d"] | Sequence[Float[Tensor, "n d"]],
    labels: Int[Tensor, " n"] | Int[np.ndarray, " n"],
    temperature: Temperature = SUPCON_TEMPERATURE,
    world: World = ALONE,
) -> Float[Tensor, ""]:
    """SupCon's L_out (eq. 2), the mean over the anchors: all views with an anchor's label are its positives.

    An image without a label (-1) is its own class, so the same call serves labeled, unlabeled and mixed batches;
    without any label it equals `nt_xent`. Arguments, result and errors are otherwise those of `nt_xent`.
    """
    z, views = _stack(z_i, z_j)
    labels = _whole("labels", labels, z_i.device)
    if len(labels) != len(z_i):
        raise StepclrError(f"{len(z_i)} images but {len(labels)} labels")
    groups = own_class(labels, image_ids(z_i, world))
    return contrastive(z, groups.repeat(views), temperature, world)


def contrastive(
    z: Float[Tensor, "m d"],
    groups: Int[Tensor, " m"] | Int[np.ndarray, " m"],
    temperature: Temperature,
    world: World = ALONE,
    *,
    positives_in_denominator: bool = True,
) -> Float[Tensor, ""]:
    """The equation at the head of this file.

    Args:
        z: projections `[M, D]` of any length and floating type; normalized and reduced in float32 (float64 stays).
        groups: int64 `[M]`; equal numbers are positives of each other.
        temperature: tau > 0; a tensor of one element receives a gradient (and one on a GPU makes the host wait).
        world: the ranks whose projections are contrasted together; `z` and `groups` are those of this rank.
        positives_in_denominator: False leaves an anchor's positives out of the sum over a, so that it is over the
            anchor's negatives alone (in the quotient of `reference.py` this sum is the denominator).

    Anchors without a positive are left out of the mean, as are those without a negative where the sum is over
    negatives alone. Where no anchor is left, the loss and its gradient are 0.
    Float32 matrix products run at full precision inside, whatever the user has set, and the setting is put back
    (`tiles.exact_products`); autocast is switched off inside.

    Second derivatives (`create_graph=True`) and the transforms of `torch.func` (`grad`, `vmap` over z, `jacrev`,
    `hessian`, ...) are exact, in one process and with memory for M x M numbers. `torch.compile` leaves this function as
    it is, at a graph break: with `fullgraph=True` it refuses.
    Raises StepclrError for shapes that do not fit or a temperature that is not above 0.
    """
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break(msg="the contrastive loss runs uncompiled; compile without fullgraph=True")
        return torch.compiler.disable(contrastive)(
            z, groups, temperature, world, positives_in_denominator=positives_in_denominator
        )
    check_temperature(temperature)
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(())
    groups = _whole("groups", groups, z.device)
    if z.ndim != 2:
        raise StepclrError(f"projections are [M, D], not {list(z.shape)}")
    if len(groups) != len(z):
        raise StepclrError(f"{len(z)} projections but {len(groups)} group ids")

    # From here on M counts the rows of all ranks.
    sizes = world.sizes(len(z))
    groups = world.gather(groups, sizes)
    if len(groups) < 2:
        return z.sum() * 0
    with torch.autocast(z.device.type, enabled=False):
        z = world.gather_with_gradient(unit(float32_or_64(z)), sizes)

        # Number the groups by the place where each begins in sorted order (`unique` would make a GPU wait).
        ordered = groups.sort().values
        group = torch.searchsorted(ordered, groups)
        count = torch.searchsorted(ordered, groups, right=True) - group - 1  # |P(i)|

        # 1/A for an anchor, else 0. The means are taken in float64: at a small temperature both terms are large, and
        # the loss is their small difference.
        anchors = count > 0
        if not positives_in_denominator:
            anchors &= count < len(groups) - 1
        weights = anchors.double() / anchors.double().sum().clamp(min=1)

        # 1/|P(i)| sum_{p in P(i)} z_i.z_p / tau, where the sum of the z_p is that of i's group without z_i.
        positives = torch.zeros_like(z).index_add(0, group, z)[group] - z
        attraction = (z * positives).sum(1) / temperature / count.clamp(min=1)

        # 1/A sum_i log sum_{a != i} exp(z_i.z_a / tau): last, so that the backward pass begins with its kept tiles.
        left_out = None if positives_in_denominator else group
        log_sum = mean_log_sum(z, weights, temperature, world, sizes, left_out)
        return (log_sum - (weights * attraction).sum()).to(z.dtype)


def own_class(labels: Int[Tensor, " n"], ids: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Groups by label, where an image without a label (below 0) is its own class; `ids` >= 0 differ for all images."""
    return torch.where(labels < 0, -1 - ids, labels)


def image_ids(z_i: Float[Tensor, "n d"], world: World) -> Int[Tensor, " n"]:
    """A number for each image of this rank that no other image of any rank has."""
    return torch.arange(len(z_i), device=z_i.device) * world.size + world.rank


def check_temperature(temperature: Temperature) -> None:
    """Raise StepclrError unless the temperature is one number above 0."""
    if isinstance(temperature, Tensor) and temperature.numel() != 1:
        raise StepclrError(f"temperature must be one number, not a tensor of shape {list(temperature.shape)}")
    if not isinstance(temperature, Tensor):
        if temperature is None:
            raise StepclrError("temperature must be a number above 0, not None")
        check_number("temperature", temperature)
    if not temperature > 0:
        raise StepclrError(f"temperature must be above 0, not {number(temperature)}")


def unit(z: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    """The rows with length 1. A power of 2 first brings each near 1, so that no square is too large or too small."""
    if not z.numel():
        return z
    largest = z.detach().abs().amax(1, keepdim=True)
    most = MAX_POWERS[z.dtype]
    power = largest.log2().floor().clamp(-most, most).where(largest > 0, 0)
    return F.normalize(z * torch.exp2(-power))


def _whole(what: str, values: Tensor | np.ndarray, device: torch.device) -> Int64[Tensor, " n"]:
    """Labels or groups as int64 `[N]`; StepclrError for anything that is not one whole number of each."""
    try:
        numbers = torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StepclrError(f"{what} must be whole numbers [N]: {first_line(error)}") from error
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.is_complex():
        dtype = str(numbers.dtype).removeprefix("torch.")
        raise StepclrError(f"{what} must be whole numbers [N], not {dtype} {list(numbers.shape)}")
    return numbers.long()


def float32_or_64(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32, unless it is in float64: what losses compute in."""
    return x if x.dtype == torch.float64 else x.float()


def _stack(z_i: Tensor, z_j: Tensor | Sequence[Tensor]) -> tuple[Tensor, int]:
    """All views' projections, one view after another, and how many views there are."""
    views: list[Any] = [z_i, z_j] if isinstance(z_j, Tensor) else [z_i, *z_j]
    if others := [type(view).__name__ for view in views if not isinstance(view, Tensor)]:
        raise StepclrError(f"projections must be tensors, not {others[0]}")
    for view in views:
        if view.shape != z_i.shape:
            raise StepclrError(f"the views' projections differ in shape: {list(z_i.shape)} and {list(view.shape)}")
    return torch.cat(views), len(views)
