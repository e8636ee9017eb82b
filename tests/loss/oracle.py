"""The papers' equations as loops in float64, and a check of a loss's value and gradient against them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stepclr.loss.reference import log_p, positives

Loss = Callable[[Tensor, Tensor, Any], Tensor]  # of projections [M, D], group ids [M] and the temperature

# Labels of N images, of which two views each make M = 2N projections; and temperatures.
IMAGES = [([0, 1, 2, 3, 4, 5, 6, 7], 0.5), ([0, 1, 2], 0.07), ([0, 1], 2.0)]
LABELS = [([0, 0, 0, 1, 2, 2], 0.1), ([3, 1, 3, 3, 1, 0, 3], 0.5), ([5, 5, 5, 5], 0.3)]
# Group ids of M projections, some of which have no positive.
GROUPS = [([0, 1, 0, 2, 1, 0], 0.2), ([7, 7, 7, 1, 2, 3, 4], 0.5), ([4, 9, 2, 9], 0.05)]
CASES = [(labels * 2, tau) for labels, tau in IMAGES + LABELS] + GROUPS


def simclr_eq_1(z_i: Tensor, z_j: Tensor, tau: float) -> Tensor:
    """SimCLR eq. 1 and Algorithm 1: an image's views 2k - 1 and 2k (here 2k and 2k + 1) are a positive pair."""
    z = [row for pair in zip(z_i.double(), z_j.double(), strict=True) for row in pair]

    def s(i: int, j: int) -> Tensor:
        cosine: Tensor = (z[i] * z[j]).sum() / (z[i].norm() * z[j].norm())
        return cosine

    def ell(i: int, j: int) -> Tensor:
        others = [torch.exp(s(i, k) / tau) for k in range(len(z)) if k != i]
        return -torch.log(torch.exp(s(i, j) / tau) / torch.stack(others).sum())

    terms = [ell(2 * k, 2 * k + 1) + ell(2 * k + 1, 2 * k) for k in range(len(z_i))]
    return torch.stack(terms).sum() / len(z)


def supcon_eq_2_and_3(z: Tensor, groups: Tensor, tau: float, inside: bool = False) -> Tensor:
    """SupCon's L_out (eq. 2), or L_in (eq. 3), `inside`: the mean over the anchors that have a positive."""
    rows = [row / row.norm() for row in z.double()]
    ids = groups.tolist()
    terms = []
    for i in range(len(rows)):
        others = [a for a in range(len(rows)) if a != i]
        same = [p for p in others if ids[p] == ids[i]]
        if not same:
            continue
        total = torch.stack([torch.exp((rows[i] * rows[a]).sum() / tau) for a in others]).sum()
        shares = [torch.exp((rows[i] * rows[p]).sum() / tau) / total for p in same]
        if not inside:
            terms.append(-torch.stack([share.log() for share in shares]).sum() / len(same))
        else:
            terms.append(-(torch.stack(shares).sum() / len(same)).log())
    return torch.stack(terms).mean()


def contrastive_in_plain(z: Tensor, groups: Tensor, tau: float) -> Tensor:
    """L_in, from the plain p_ia: as L_out, but the mean over the positives stands inside the logarithm."""
    positive = positives(groups)
    anchors = positive.any(1)
    p = torch.where(positive, log_p(z, tau).exp(), 0)
    mean_p = p.sum(1)[anchors] / positive.sum(1)[anchors]
    return -mean_p.log().sum() / anchors.sum().clamp(min=1)


def projections(m: int, width: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random projections of very unequal lengths, as a head that does not normalize gives them."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(m, width, generator=generator, dtype=torch.float64)
    return (z * torch.exp(2 * torch.randn(m, 1, generator=generator, dtype=torch.float64))).to(dtype)


def value_and_gradient(loss: Loss, z: Tensor, groups: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    leaf = z.clone().requires_grad_()
    value = loss(leaf, groups, tau)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert gradient.dtype == z.dtype
    return value.detach(), gradient


def check(loss: Loss, cases: list[tuple[list[int], float]], oracle: Loss = supcon_eq_2_and_3) -> None:
    """Fail unless `loss` has the value and the gradient of the paper's loops, to 1e-12 in float64."""
    for seed, (ids, tau) in enumerate(cases):
        z, groups = projections(len(ids), seed=seed), torch.tensor(ids)
        value, gradient = value_and_gradient(loss, z, groups, tau)
        expected, slope = value_and_gradient(oracle, z, groups, tau)
        assert value.dtype == torch.float64
        assert value.shape == ()
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        # A short projection has a long gradient: compare what its direction gets.
        lengths = z.norm(dim=1, keepdim=True)
        torch.testing.assert_close(gradient * lengths, slope * lengths, rtol=1e-11, atol=1e-12)
