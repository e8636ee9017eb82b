"""Step 4: the projection head g(.), a small MLP between the representation and the loss."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from stepclr.errors import StepclrError


class ProjectionHead(nn.Sequential):
    """z = g(h): h `[n, features]` -> z `[n, out]` (SimCLR sections 2 and 4.2; three layers: SimCLRv2 section 3).

    Every linear layer is followed by BatchNorm and all but the last by ReLU, as in the authors' code (the paper's
    g(h) = W2 relu(W1 h) leaves the BatchNorm out). z is not normalized here: the loss does that.

    Args: features: width F of h. hidden: width of the hidden layers. out: width D of z. layers: 2 or 3.
    Raises StepclrError for another number of layers.
    """

    def __init__(self, features: int, hidden: int = 2048, out: int = 128, layers: int = 2) -> None:
        if layers not in (2, 3):
            raise StepclrError(f"a projection head has 2 or 3 layers, not {layers}")
        widths = [hidden] * (layers - 1) + [out]
        steps: list[nn.Module] = []
        for wide, narrow in pairwise([features, *widths]):
            # BatchNorm's own shift does the work of a bias.
            steps += [nn.Linear(wide, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU()]
        super().__init__(*steps[:-1])
        self.widths = widths

    @classmethod
    def of_widths(cls, features: int, widths: Sequence[int]) -> "ProjectionHead":
        """The head whose layers have these widths, as `parse_widths` gives them."""
        return cls(features, widths[0], widths[-1], layers=len(widths))

    def forward(self, h: Float[Tensor, "n features"]) -> Float[Tensor, "n out"]:
        for layer in self:
            h = layer(h)
        return h


def parse_widths(text: str) -> list[int]:
    """Widths of a head's layers from text: "2048-128" has two layers, "2048-2048-128" three with equal hidden ones."""
    widths = [int(width) if width.isdecimal() else 0 for width in text.split("-")]
    if len(widths) not in (2, 3) or len(set(widths[:-1])) != 1 or min(widths) < 1:
        raise StepclrError(f"head must be widths such as 2048-128, or 2048-2048-128 for three layers, not {text!r}")
    return widths
