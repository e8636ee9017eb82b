"""Step 5: projections `z_i, z_j [N, D]` (and labels) -> a scalar (SimCLR eq. 1; SupCon eq. 2 and 3)."""

from stepclr.loss.contrastive import contrastive, nt_xent, supcon

__all__ = ["contrastive", "nt_xent", "supcon"]
