"""Step 5b: what stored h, z and labels say about a run, with no gradient and no state; steps 6 and 7 call these."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stepclr.loss.tiles import Tiles

ROWS = 1024  # compared with all others at a time: memory stays flat


def weighted_knn(
    bank: Float[Tensor, "m features"],
    bank_labels: Int[Tensor, " m"],
    h: Float[Tensor, "n features"],
    k: int = 20,
    temperature: float = 0.1,
) -> Int[Tensor, " n"]:
    """Predicted class of each row of h: its k nearest of the bank vote with weight exp(cosine / T) (k = min(k, m)).

    Follows Wu et al. 2018 (1805.01978, section 3.4); rows are normalized here. A draw goes to the lower class.
    """
    bank, h = F.normalize(bank), F.normalize(h)
    classes = int(bank_labels.max()) + 1
    predictions = []
    for rows in h.split(ROWS):
        cosine, nearest = (rows @ bank.T).topk(min(k, len(bank)))
        votes = torch.zeros(len(rows), classes, device=h.device)
        # Relative to the nearest (topk sorts): exp(1 / T) does not fit into float32 at T = 0.01.
        votes.scatter_add_(1, bank_labels[nearest], ((cosine - cosine[:, :1]) / temperature).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def contrastive_top1(z_i: Float[Tensor, "n d"], z_j: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Share of the 2N anchors whose most similar other projection is their positive (SimCLR's contrastive accuracy)."""
    z = F.normalize(torch.cat([z_i, z_j]).float())
    found = torch.zeros((), device=z.device)
    for anchors in torch.arange(len(z), device=z.device).split(ROWS):
        similarity = z[anchors] @ z.T
        similarity.scatter_(1, anchors[:, None], -torch.inf)
        found += (similarity.argmax(1) == (anchors + len(z_i)) % len(z)).sum()
    return found / len(z)


def alignment(z_i: Float[Tensor, "n d"], z_j: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared distance of an image's two normalized projections: 0 is perfect (Wang & Isola 2020, 2005.10242)."""
    return (F.normalize(z_i.float()) - F.normalize(z_j.float())).square().sum(1).mean()


def uniformity(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """log mean exp(-2 |z_a - z_b|^2) over pairs a < b: 0 is collapsed, about -4 is spread out (Wang & Isola 2020)."""
    z = F.normalize(z.float())
    # |z_a - z_b|^2 = 2 - 2 z_a.z_b, so that the mean over pairs is the loss's own sum at temperature 1/4.
    total = Tiles(z, 0.25).log_sums().logsumexp(0)
    uniform: Tensor = total - 4 - math.log(len(z) * (len(z) - 1))
    return uniform


def effective_rank(h: Float[Tensor, "n features"]) -> float:
    """exp of the entropy of h's centerd singular values' shares: how many directions h uses (Roy & Vetterli 2007)."""
    singular = torch.linalg.svdvals(h.float() - h.float().mean(0))
    shares = singular / singular.sum()
    return math.exp(float(-(shares * shares.clamp(min=1e-12).log()).sum())) if singular.sum() > 0 else 1.0
