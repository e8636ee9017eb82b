"""The losses of logits: what the contrastive ones are compared with, and SimCLRv2's distillation."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stepclr.distributed import ALONE, World
from stepclr.errors import StepclrError


def cross_entropy(logits: Float[Tensor, "m c"], labels: Int[Tensor, " m"], world: World = ALONE) -> Float[Tensor, ""]:
    """-log softmax(logits)[label], the mean over the images that have one; 0 where none has (label -1).

    Args: logits: `[M, C]`, of any floating type; reduced in float32 (float64 stays). labels: int64 `[M]`.
    Many ranks take the mean over the images of them all; value and gradient are as in `contrastive.py`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        sizes = world.sizes(len(logits))
        logits, labels = world.together(_precise(logits), sizes), world.gather(labels, sizes)
        total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return total / (labels >= 0).sum().clamp(min=1)


def distillation(
    logits: Float[Tensor, "m c"], teacher: Float[Tensor, "m c"], temperature: float = 1.0, world: World = ALONE
) -> Float[Tensor, ""]:
    """- sum_y P_teacher(y) log P_student(y), both softmax(logits / T), the mean over images (SimCLRv2 eq. 2).

    Args: logits, teacher: `[M, C]`, of any floating type; no gradient reaches the teacher. temperature: T > 0.
    Many ranks: as in `cross_entropy`.
    Raises: StepclrError for shapes that differ or a temperature that is not above 0.
    """
    if logits.shape != teacher.shape:
        raise StepclrError(f"student and teacher differ in shape: {list(logits.shape)} and {list(teacher.shape)}")
    if not temperature > 0:
        raise StepclrError(f"temperature must be above 0, not {temperature}")
    with torch.autocast(logits.device.type, enabled=False):
        sizes = world.sizes(len(logits))
        logits, teacher = world.together(_precise(logits), sizes), world.gather(_precise(teacher), sizes)
        return -((teacher / temperature).softmax(1) * (logits / temperature).log_softmax(1)).sum(1).mean()


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
