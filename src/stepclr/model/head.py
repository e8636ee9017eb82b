"""Step 4: the projection head g(.), a small MLP between the representation and the loss."""

import re
from itertools import pairwise
from typing import Any

from torch import nn

from stepclr.errors import StepclrError, check_whole, choose

FORMS = ("batchnorm", "reference", "plain")


class ProjectionHead(nn.Sequential):
    """z = g(h): h `[n, features]` -> z `[n, out]` (SimCLR sections 2 and 4.2; three layers: SimCLRv2 section 3).

    The paper's g(h) = W2 relu(W1 h) does not mention BatchNorm; the authors' code (google-research/simclr) has it. A
    head of one layer is W h, without BatchNorm or bias (SupCon's code). z is not normalized here: the loss does that.

    Args:
        features: width F of h.
        hidden: width of the hidden layers.
        out: width D of z.
        layers: 1, 2 or 3.
        form: "batchnorm": BatchNorm follows every linear layer, and ReLU all but the last one. "reference": the same
            as in the authors' code, whose last BatchNorm has no shift, and whose linear layers begin as N(0, 0.01^2),
            not uniform as torch's; on the bundled sample the two score the same within the spread over three seeds
            (benchmarks/results/accuracy.md). "plain": linear layers with biases and ReLU alone (SupContrast).

    Raises StepclrError for another number of layers, another form, and widths that are not whole numbers from 1 up.
    """

    def __init__(
        self, features: int, hidden: int = 2048, out: int = 128, layers: int = 2, form: str = "batchnorm"
    ) -> None:
        choose("form", form, FORMS)
        if layers not in (1, 2, 3):
            raise StepclrError(f"a projection head has 1, 2 or 3 layers, not {layers}")
        widths = [hidden] * (layers - 1) + [out]
        for name, width in (("features", features), ("hidden", hidden), ("out", out)):
            check_whole(name, width, 1)
        steps: list[nn.Module] = []
        for wide, narrow in pairwise([features, *widths]):
            if layers == 1:
                steps.append(nn.Linear(wide, narrow, bias=False))
            elif form == "plain":
                steps.append(nn.Linear(wide, narrow))
            else:
                # BatchNorm's own shift does the work of a bias.
                steps += [nn.Linear(wide, narrow, bias=False), nn.BatchNorm1d(narrow)]
            steps.append(nn.ReLU())
        super().__init__(*steps[:-1])
        self.widths = widths
        if form == "reference":
            self._take_reference_form()

    def __getitem__(self, index: Any) -> Any:
        """A layer, or for a slice an `nn.Sequential` of these layers."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    @classmethod
    def of_text(cls, features: int, text: str) -> "ProjectionHead":
        """The head that a text such as "2048-128:plain" describes (see `parse_head`)."""
        widths, form = parse_head(text)
        return cls(features, widths[0], widths[-1], len(widths), form)

    def first_layers(self, layers: int) -> nn.Sequential:
        """The first layers, each with what follows it: BatchNorm, and ReLU except after the head's last layer.

        Raises StepclrError if the head has fewer.
        """
        available = len(self.widths)
        if not 1 <= layers <= available:
            raise StepclrError(f"the head has {available} layers, so there is no head.{layers}")
        per_layer = (len(self) + 1) // available
        return nn.Sequential(*list(self)[: per_layer * layers])

    def _take_reference_form(self) -> None:
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)

        # A shift that stays 0 has no effect, and the head's tensors keep their names.
        last = self[-1]
        if isinstance(last, nn.BatchNorm1d):
            last.bias.requires_grad_(False)


def parse_head(text: str) -> tuple[list[int], str]:
    """Widths and form of a head: "128" has one layer, "2048-128" two, "2048-2048-128:plain" three without BatchNorm.

    Hidden layers are equally wide. Without a colon the form is "batchnorm". Raises StepclrError for any other text.
    """
    layers, colon, form = str(text).partition(":")
    widths: list[int] = []
    if re.fullmatch(r"\d{1,7}(-\d{1,7}){0,2}", layers):
        widths = [int(width) for width in layers.split("-")]
    if not widths or min(widths) < 1 or len(set(widths[:-1])) > 1:
        raise StepclrError(
            f"head must be widths such as 128, 2048-128, or 2048-2048-128 (one, two or three layers), not {text!r}"
        )
    return widths, choose("form of head", form if colon else "batchnorm", FORMS)
