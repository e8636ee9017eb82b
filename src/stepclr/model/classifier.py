"""The linear layer that takes the place of the discarded head (SimCLR section 2, SimCLRv2 section 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepclr.model.encoder import Encoder
from stepclr.model.head import ProjectionHead
from stepclr.views.policies import FLIP


class Classifier(nn.Module):
    """Logits of C classes: images `[n, 3, S, S]` in [0, 1] -> h -> kept head layers, if any -> linear `[n, C]`.

    Args:
        encoder: f(.), its preprocessing included.
        classes: names of the C classes.
        head: the projection head as `parse_head` reads it, of which the first `kept_layers` stay (fine-tuning from a
            middle layer of the head, SimCLRv2 section 4.2). None stay by default.

    Attributes: min_area, flip: of the views that it was trained on, the smallest crop (None: not known) and the
    probability of mirroring. A student sees such views too.
    """

    min_area: float | None = None
    flip: float = FLIP

    def __init__(self, encoder: Encoder, classes: Sequence[str], head: str = "", kept_layers: int = 0) -> None:
        super().__init__()
        self.encoder, self.classes = encoder, list(classes)
        self.head, self.kept_layers = head, kept_layers
        width, self.neck = encoder.num_features, nn.Sequential()
        if kept_layers:
            whole = ProjectionHead.of_text(width, head)
            self.neck = whole.first_layers(kept_layers)
            width = whole.widths[kept_layers - 1]
        self.linear = nn.Linear(width, len(self.classes))

    def forward(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n classes"]:
        return self.linear(self.neck(self.encoder(x)))

    @property
    def device(self) -> torch.device:
        return self.linear.weight.device
