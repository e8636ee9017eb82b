"""The losses of logits: cross-entropy, which the contrastive losses are compared with, and SimCLRv2's distillation."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stepclr.distributed import ALONE, World
from stepclr.errors import StepclrError
from stepclr.loss.contrastive import check_temperature, float32_or_64
from stepclr.loss.tiles import Temperature


def cross_entropy(logits: Float[Tensor, "m c"], labels: Int[Tensor, " m"], world: World = ALONE) -> Float[Tensor, ""]:
    """-log softmax(logits)[label], the mean over the images that have a label; 0 where none has one (label -1).

    Args: logits: `[M, C]`, of any floating type; reduced in float32 (float64 stays). labels: int64 `[M]`.
    Several ranks take the mean over the images of all of them (see `World.gather_with_gradient`).
    """
    with torch.autocast(logits.device.type, enabled=False):
        sizes = world.sizes(len(logits))
        logits = world.gather_with_gradient(float32_or_64(logits), sizes)
        labels = world.gather(labels, sizes)
        total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return total / (labels >= 0).sum().clamp(min=1)


def distillation(
    logits: Float[Tensor, "m c"], teacher: Float[Tensor, "m c"], temperature: Temperature = 1.0, world: World = ALONE
) -> Float[Tensor, ""]:
    """- sum_y P_teacher(y) log P_student(y), both softmax(logits / T), the mean over images (SimCLRv2 eq. 2).

    Args: logits, teacher: `[M, C]`, of any floating type; no gradient reaches the teacher. temperature: T > 0.
    Several ranks: as in `cross_entropy`.
    Raises: StepclrError for shapes that differ or a temperature that is not above 0.
    """
    if logits.shape != teacher.shape:
        raise StepclrError(f"student and teacher differ in shape: {list(logits.shape)} and {list(teacher.shape)}")
    check_temperature(temperature)
    with torch.autocast(logits.device.type, enabled=False):
        sizes = world.sizes(len(logits))
        logits = world.gather_with_gradient(float32_or_64(logits), sizes)
        teacher = world.gather(float32_or_64(teacher), sizes)
        p_teacher = (teacher / temperature).softmax(1)
        log_p_student = (logits / temperature).log_softmax(1)
        return -(p_teacher * log_p_student).sum(1).mean()
