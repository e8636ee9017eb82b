"""Step 4: the projection head g(.), a small MLP between the representation and the loss."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from stepclr.errors import StepclrError


class ProjectionHead(nn.Sequential):
    """z = g(h): h `[n, features]` -> z `[n, out]` (SimCLR sections 2 and 4.2; three layers: SimCLRv2 section 3).

    Every linear layer is followed by BatchNorm, and all but the last one also by ReLU. The paper's g(h) = W2 relu(W1 h)
    does not mention the BatchNorm; the authors' code (google-research/simclr) has it. Two things differ there, and
    `reference` does them as that code does: its last BatchNorm has no shift, and the weights of its linear layers begin
    as N(0, 0.01^2), not uniform as torch's. On the bundled sample the two forms score the same within the spread over
    three seeds (benchmarks/results/accuracy.md), so torch's initialization stays the default. z is not normalized here:
    the loss does that.

    Args:
        features: width F of h.
        hidden: width of the hidden layers.
        out: width D of z.
        layers: 2 or 3.
        reference: take the form of the authors' code.

    Raises StepclrError for another number of layers.
    """

    def __init__(
        self, features: int, hidden: int = 2048, out: int = 128, layers: int = 2, reference: bool = False
    ) -> None:
        if layers not in (2, 3):
            raise StepclrError(f"a projection head has 2 or 3 layers, not {layers}")
        widths = [hidden] * (layers - 1) + [out]
        steps: list[nn.Module] = []
        for wide, narrow in pairwise([features, *widths]):
            # BatchNorm's own shift does the work of a bias.
            steps += [nn.Linear(wide, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU()]
        super().__init__(*steps[:-1])
        self.widths = widths
        if reference:
            self._take_reference_form()

    @classmethod
    def of_widths(cls, features: int, widths: Sequence[int]) -> "ProjectionHead":
        """The head whose layers have these widths, as `parse_widths` gives them."""
        return cls(features, widths[0], widths[-1], layers=len(widths))

    def _take_reference_form(self) -> None:
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)

        # A shift that stays 0 is none, and the head's tensors keep their names.
        last_norm = self[-1]
        assert isinstance(last_norm, nn.BatchNorm1d)
        last_norm.bias.requires_grad_(False)


def parse_widths(text: str) -> list[int]:
    """Widths of a head's layers from text: "2048-128" has two layers, "2048-2048-128" three with equal hidden ones."""
    widths = [int(width) if width.isdecimal() else 0 for width in text.split("-")]
    if len(widths) not in (2, 3) or len(set(widths[:-1])) != 1 or min(widths) < 1:
        raise StepclrError(f"head must be widths such as 2048-128, or 2048-2048-128 for three layers, not {text!r}")
    return widths
