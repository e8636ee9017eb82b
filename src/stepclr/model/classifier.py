"""The linear layer that takes the thrown-away head's place (SimCLR section 2, SimCLRv2 section 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepclr.errors import StepclrError
from stepclr.model.encoder import Encoder
from stepclr.model.head import ProjectionHead


class Classifier(nn.Module):
    """Logits of C classes: images `[n, 3, S, S]` in [0, 1] -> h -> kept head layers, if any -> linear `[n, C]`.

    Args:
        encoder: f(.), its preprocessing included.
        classes: names of the C classes.
        kept: widths of the projection head's layers and, last, how many of them stay, as `[512, 512, 128, 1]` of a head
            512 -> 512 -> 128: fine-tuning from the head's first layer (SimCLRv2 section 4.2). Empty: none stays.
    """

    def __init__(self, encoder: Encoder, classes: Sequence[str], kept: Sequence[int] = ()) -> None:
        super().__init__()
        self.encoder, self.classes, self.kept = encoder, list(classes), list(kept)
        width, self.neck = encoder.num_features, nn.Sequential()
        if self.kept:
            features, hidden, *_, out, layers = self.kept
            self.neck = first_layers(ProjectionHead(features, hidden, out, len(self.kept) - 2), layers)
            width = self.kept[layers]
        self.linear = nn.Linear(width, len(self.classes))

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(self.neck(self.encoder(x)))
        return logits

    @property
    def device(self) -> torch.device:
        return self.linear.weight.device


def first_layers(head: ProjectionHead, layers: int) -> nn.Sequential:
    """The first layers of a head: linear, BatchNorm and, but for the head's last one, ReLU each.

    Raises StepclrError if the head has fewer.
    """
    there = -(-len(head) // 3)
    if not 1 <= layers <= there:
        raise StepclrError(f"the head has {there} layers; there is no head.{layers}")
    return nn.Sequential(*list(head)[: 3 * layers])
