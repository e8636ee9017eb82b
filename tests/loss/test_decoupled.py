"""The decoupled contrastive loss against its paper's equation as loops in float64 (Yeh et al. 2021, weight 1)."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from oracle import Loss, check, projections, value_and_gradient
from small import WORDS
from torch import Tensor

from stepclr.cli import main
from stepclr.distributed import ALONE
from stepclr.loss import tiles
from stepclr.loss.objectives import OBJECTIVES
from stepclr.pretraining.run import Run

# Images of M projections, view after view: two, three and four views of each; and temperatures.
CASES = [(list(range(n)) * views, tau) for n, views, tau in [(6, 2, 0.5), (4, 2, 0.05), (3, 3, 0.1), (4, 4, 0.02)]]


def decoupled_loops(z: Tensor, images: Tensor, tau: float) -> Tensor:
    """-z_i.z_p / tau, the mean over the other views p of i's image, + log of the sum over the views of other images."""
    rows = [row / row.norm() for row in z.double()]
    ids = images.tolist()
    terms = []
    for i in range(len(rows)):
        positives = [p for p in range(len(rows)) if p != i and ids[p] == ids[i]]
        negatives = [a for a in range(len(rows)) if ids[a] != ids[i]]
        attraction = torch.stack([(rows[i] * rows[p]).sum() / tau for p in positives]).sum() / len(positives)
        total = torch.stack([torch.exp((rows[i] * rows[a]).sum() / tau) for a in negatives]).sum()
        terms.append(total.log() - attraction)
    return torch.stack(terms).mean()


def dcl(z: Tensor, images: Tensor, tau: float) -> Tensor:
    """The row of the table, of M projections of view after view."""
    views = len(z) // len(images.unique())
    return OBJECTIVES["dcl"].loss(z.chunk(views), torch.full((len(z) // views,), -1), tau, ALONE)


def copy_with_fault(fault: str) -> Loss:
    """The loss, written once more with all M x M numbers, with one thing wrong."""

    def loss(z: Tensor, images: Tensor, tau: float) -> Tensor:
        z = F.normalize(z)
        similarity = z @ z.T / tau
        itself = torch.eye(len(z), dtype=torch.bool)
        same = images[:, None] == images
        positive = same & ~itself
        left_out = same
        if fault == "positives left in":
            left_out = itself
        if fault == "itself left in":
            left_out = positive
        if fault == "one positive left out":
            first = F.one_hot(positive.int().argmax(1), len(z)).bool()
            left_out = itself | first
        log_sum = similarity.masked_fill(left_out, -torch.inf).logsumexp(1)
        if fault == "mean for the sum":
            log_sum = log_sum - (~same).sum(1).log()
        if fault == "positives subtracted":
            every = similarity.exp().masked_fill(itself, 0).sum(1)
            log_sum = (every - (similarity.exp() * positive).sum(1)).log()
        count = positive.sum(1)
        if fault == "positives summed":
            count = torch.ones_like(count)
        return (log_sum - (similarity * positive).sum(1) / count).mean()

    return loss


def test_the_loss_and_its_gradient_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    check(dcl, CASES, decoupled_loops)
    monkeypatch.setattr(tiles, "TILE_SIZES", dict.fromkeys(tiles.TILE_SIZES, (3, 5)))
    for kept in (0, 20, 10**6):  # numbers of the first pass that the second finds
        monkeypatch.setattr(tiles, "KEPT_NUMBERS", kept)
        check(dcl, CASES, decoupled_loops)


def test_the_check_passes_a_second_correct_copy() -> None:
    check(copy_with_fault("none"), CASES, decoupled_loops)


@pytest.mark.parametrize(
    "fault", ["positives left in", "itself left in", "one positive left out", "mean for the sum", "positives summed"]
)
def test_the_check_rejects_a_loss_with(fault: str) -> None:
    with pytest.raises(AssertionError):
        check(copy_with_fault(fault), CASES, decoupled_loops)


def check_dominating_positives(loss: Loss, tau: float) -> None:
    """In float32, where an image's views almost coincide: their exp outweighs the sum of all negatives."""
    z = torch.randn(12, 64, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    z += 0.01 * torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
    images = torch.arange(12).repeat(2)
    value, gradient = value_and_gradient(loss, z, images, tau)
    expected, slope = value_and_gradient(decoupled_loops, z.double(), images, tau)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - slope).norm() <= 1e-4 * slope.norm()


@pytest.mark.parametrize("tau", [0.01, 0.03, 0.05, 0.5])
def test_positives_that_dominate_the_sum_do_not_cost_its_digits(tau: float) -> None:
    check_dominating_positives(dcl, tau)


@pytest.mark.parametrize("tau", [0.03, 0.05])
def test_subtracting_the_positives_would(tau: float) -> None:
    check_dominating_positives(copy_with_fault("none"), tau)
    with pytest.raises(AssertionError):
        check_dominating_positives(copy_with_fault("positives subtracted"), tau)


def test_collapsed_projections_cost_log_of_the_negatives() -> None:
    z = torch.ones(12, 4) * 3
    assert dcl(z, torch.arange(6).repeat(2), 0.1).item() == pytest.approx(math.log(10), abs=1e-5)


@pytest.mark.parametrize("tau", [0.01, 0.5])
def test_an_image_without_any_negative_has_loss_0_and_gradient_0(tau: float) -> None:
    value, gradient = value_and_gradient(dcl, projections(3), torch.zeros(3, dtype=torch.int64), tau)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(3, 5, dtype=torch.float64))


def test_a_run_with_the_decoupled_loss_learns(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit, match="0"):
        main(["pretrain", "sample:unlabeled", "--out", str(out), *WORDS, "--loss", "dcl", "--epochs", "8"])
    run = Run(out)
    assert run.config.loss == "dcl"
    losses = [line["loss"] for line in run.metrics]
    assert losses[-1] < losses[0]
    assert run.metrics[-1]["negatives"] == 30  # of an anchor: two views of each of 15 other images
