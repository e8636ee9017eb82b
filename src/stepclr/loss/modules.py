"""The contrastive losses as `nn.Module`s, for anyone's training loop and process group."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepclr.distributed import ALONE, World, process_group
from stepclr.loss.contrastive import NT_XENT_TEMPERATURE, SUPCON_TEMPERATURE, check_temperature, nt_xent, supcon
from stepclr.loss.tiles import Temperature, number


class _ContrastiveLoss(nn.Module):
    """A temperature, and the ranks to contrast with."""

    def __init__(self, temperature: Temperature, gather: bool) -> None:
        check_temperature(temperature)
        super().__init__()
        self.temperature, self.gather = temperature, gather

    def world(self) -> World:
        """The process group as it is now; it may be initialized after the loss is built."""
        return process_group() if self.gather else ALONE

    def extra_repr(self) -> str:
        return f"temperature={number(self.temperature):g}, gather={self.gather}"


class NTXentLoss(_ContrastiveLoss):
    """NT-Xent (SimCLR eq. 1) as a module: `criterion(z_i, z_j)`, the mean over the anchors (see `nt_xent`).

        >>> import torch
        >>> criterion = NTXentLoss(temperature=0.5)
        >>> z_i, z_j = torch.eye(4, 8), 3 * torch.eye(4, 8)   # each pair of views at one point, all pairs orthogonal
        >>> print(f"{criterion(z_i, z_j):.4f}")               # log(exp(1 / 0.5) + 6) - 1 / 0.5
        0.5944

    Where torch.distributed has a process group, the projections of all ranks are contrasted together: every rank gets
    the loss of the whole batch, and under DistributedDataParallel, which averages gradients, the gradient is that of
    one process with the whole batch. Ranks may bring different numbers of images.

    Args: temperature: tau > 0; an `nn.Parameter` of one element is learned with the network's, as `parameters()` lists
    it. gather: False contrasts the projections of this rank alone.
    Raises StepclrError for a temperature that is not above 0.
    """

    def __init__(self, temperature: Temperature = NT_XENT_TEMPERATURE, gather: bool = True) -> None:
        super().__init__(temperature, gather)

    def forward(
        self, z_i: Float[Tensor, "n d"], z_j: Float[Tensor, "n d"] | Sequence[Float[Tensor, "n d"]]
    ) -> Float[Tensor, ""]:
        """The loss; with more than two views, z_j is the list of the other views' projections."""
        return nt_xent(z_i, z_j, self.temperature, self.world())


class SupConLoss(_ContrastiveLoss):
    """SupCon's L_out (eq. 2) as a module: `criterion(z_i, z_j, labels)`, the mean over the anchors (see `supcon`).

        >>> import torch
        >>> criterion = SupConLoss(temperature=0.1)
        >>> z_i, z_j = torch.eye(4, 8), torch.eye(4, 8)
        >>> loss = criterion(z_i, z_j, torch.tensor([0, 0, 1, -1]))   # -1: no label, its own class
        >>> loss.shape
        torch.Size([])

    Process groups, arguments and errors are as for `NTXentLoss`.
    """

    def __init__(self, temperature: Temperature = SUPCON_TEMPERATURE, gather: bool = True) -> None:
        super().__init__(temperature, gather)

    def forward(
        self,
        z_i: Float[Tensor, "n d"],
        z_j: Float[Tensor, "n d"] | Sequence[Float[Tensor, "n d"]],
        labels: Int[Tensor, " n"] | Int[np.ndarray, " n"],
    ) -> Float[Tensor, ""]:
        """The loss; with more than two views, z_j is the list of the other views' projections."""
        return supcon(z_i, z_j, labels, self.temperature, self.world())
