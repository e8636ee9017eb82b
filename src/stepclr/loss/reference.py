"""Step 5, plainly: the equations as the papers write them, with all M x M numbers at once.

With s_ia = z_i.z_a / tau, the z of length 1, the softmax picks projection a for anchor i with probability

    p_ia = exp(s_ia) / sum_{b != i} exp(s_ib)

P(i) are the other projections of i's group: its positives. A is the number of anchors that have a positive.

    L_out = 1/A sum_i  -1/|P(i)| sum_{p in P(i)} log p_ip          SupCon eq. 2; with images as groups, SimCLR eq. 1

`contrastive.py` computes L_out fast. This file is for reading and for tests: its memory grows with M^2.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def contrastive_plain(z: Float[Tensor, "m d"], groups: Int[Tensor, " m"], temperature: float) -> Float[Tensor, ""]:
    """L_out of projections `[M, D]` of any length and group ids `[M]`; 0 where no anchor has a positive."""
    anchors = positives(groups).any(1)
    return anchor_losses(z, groups, temperature).sum() / anchors.sum().clamp(min=1)


def anchor_losses(
    z: Float[Tensor, "m d"], groups: Int[Tensor, " m"], temperature: float, positives_in_denominator: bool = True
) -> Float[Tensor, " m"]:
    """Each anchor's own term of L_out; 0 for an anchor without a positive.

    positives_in_denominator: False leaves P(i) out of the sum over b.
    """
    positive = positives(groups)
    left_out = None if positives_in_denominator else positive
    losses = -torch.where(positive, log_p(z, temperature, left_out), 0)
    return losses.sum(1) / positive.sum(1).clamp(min=1)


def log_p(
    z: Float[Tensor, "m d"], temperature: float, left_out: Bool[Tensor, "m m"] | None = None
) -> Float[Tensor, "m m"]:
    """log p_ia. The diagonal means nothing: no projection is compared with itself.

    left_out: whether b is left out of the sum for anchor i, for each pair (i, b).
    """
    z = F.normalize(z)
    similarity = z @ z.T / temperature
    not_summed = torch.eye(len(z), dtype=torch.bool, device=z.device)
    if left_out is not None:
        not_summed = not_summed | left_out
    return similarity - similarity.masked_fill(not_summed, -torch.inf).logsumexp(1, keepdim=True)


def positives(groups: Int[Tensor, " m"]) -> Bool[Tensor, "m m"]:
    """Whether a is in P(i), for each pair (i, a)."""
    itself = torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    return (groups[:, None] == groups) & ~itself
