"""The objectives of pretraining, one row each: a loss is added by one function and one row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepclr.distributed import World
from stepclr.loss.contrastive import SUPCON_TEMPERATURE, contrastive, image_ids, nt_xent, supcon
from stepclr.loss.logits import cross_entropy, distillation
from stepclr.loss.tiles import Temperature

Projections = Sequence[Float[Tensor, "n d"]]
Loss = Callable[[Projections, Tensor, Temperature, World], Float[Tensor, ""]]
BoundLoss = Callable[[Projections, Tensor], Float[Tensor, ""]]

# Of the views' side in pixels, for the default temperature. SimCLR table 5 (224 px) has 64.4% at tau 0.1 and 60.7% at
# 0.5. For small images SimCLR uses 0.5 over 1000 epochs (App. B.9), but short runs here are better at 0.2
# (benchmarks/results/accuracy.md).
SMALL_VIEWS = 96


@dataclass(frozen=True)
class Objective:
    """What a run minimizes: `loss(z, labels, temperature, world)` of the V views' projections z, `[N, D]` each.

    contrastive: z are projections; else logits, and a linear layer replaces the head. needs_labels: the images
    must have some. needs_teacher: `labels` are a teacher's logits `[V N, C]` of the same views.
    uses_temperature: whether the loss has one.
    positives_in_denominator: as in `contrastive`; the loss of projections that all coincide follows from it.
    temperatures: the default tau for views of at most SMALL_VIEWS pixels, and for larger ones.
    """

    loss: Loss
    contrastive: bool = True
    needs_labels: bool = False
    needs_teacher: bool = False
    uses_temperature: bool = True
    positives_in_denominator: bool = True
    temperatures: tuple[float, float] = (0.2, 0.1)

    def temperature(self, size: int) -> float:
        """The default temperature for views of this side."""
        for_small, for_large = self.temperatures
        return for_small if size <= SMALL_VIEWS else for_large

    @property
    def uses(self) -> dict[str, bool]:
        """Whether the loss uses these settings of a run."""
        return {"temperature": self.uses_temperature, "head": self.contrastive}

    def bind(self, temperature: Temperature, world: World) -> BoundLoss:
        """The loss as Algorithm 1 calls it: of projections and labels alone."""
        return lambda z, labels: self.loss(z, labels, temperature, world)


def _nt_xent(z: Projections, labels: Int[Tensor, " n"], temperature: Temperature, world: World) -> Float[Tensor, ""]:  # noqa: ARG001
    return nt_xent(z[0], z[1:], temperature, world)


def _supcon(z: Projections, labels: Int[Tensor, " n"], temperature: Temperature, world: World) -> Float[Tensor, ""]:
    return supcon(z[0], z[1:], labels, temperature, world=world)


def _decoupled(z: Projections, labels: Int[Tensor, " n"], temperature: Temperature, world: World) -> Float[Tensor, ""]:  # noqa: ARG001
    """NT-Xent with an image's own views left out of the denominator (Yeh et al. 2021, 2110.06848, weight 1)."""
    images = image_ids(z[0], world).repeat(len(z))
    return contrastive(torch.cat([*z]), images, temperature, world, positives_in_denominator=False)


def _cross_entropy(
    z: Projections,
    labels: Int[Tensor, " n"],
    temperature: Temperature,  # noqa: ARG001
    world: World,
) -> Float[Tensor, ""]:
    return cross_entropy(torch.cat([*z]), labels.repeat(len(z)), world)


def _distillation(
    z: Projections, labels: Float[Tensor, "m c"], temperature: Temperature, world: World
) -> Float[Tensor, ""]:
    return distillation(torch.cat([*z]), labels, temperature, world)


OBJECTIVES = {
    "nt-xent": Objective(_nt_xent),
    "supcon": Objective(_supcon, needs_labels=True, temperatures=(SUPCON_TEMPERATURE, SUPCON_TEMPERATURE)),
    "dcl": Objective(_decoupled, positives_in_denominator=False),
    "cross-entropy": Objective(_cross_entropy, contrastive=False, needs_labels=True, uses_temperature=False),
    "distill": Objective(_distillation, contrastive=False, needs_teacher=True, temperatures=(1.0, 1.0)),
}
