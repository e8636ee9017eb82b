"""The plain equations against the papers' loops: value and gradient."""

from functools import partial

import pytest
import torch
from oracle import CASES, Loss, check, contrastive_in_plain, projections, supcon_eq_2_and_3, value_and_gradient

from stepclr.loss.reference import anchor_losses, contrastive_plain


def test_the_plain_loss_is_supcons_equation_2() -> None:
    check(contrastive_plain, CASES)


def test_the_plain_loss_with_the_mean_inside_is_supcons_equation_3() -> None:
    oracle = partial(supcon_eq_2_and_3, inside=True)
    check(contrastive_in_plain, CASES, oracle)
    with pytest.raises(AssertionError):  # the test of the test
        check(contrastive_plain, CASES, oracle)


def test_each_anchor_has_its_own_term() -> None:
    """The mean over the anchors of a group alone needs no other group's terms."""
    z, groups = projections(8), torch.tensor([0, 1, 0, 2, 1, 0, 3, 3])
    losses = anchor_losses(z, groups, 0.3)
    for i in range(8):
        positives = [p for p in range(8) if p != i and groups[p] == groups[i]]
        others = [a for a in range(8) if a != i]
        s = torch.nn.functional.normalize(z) @ torch.nn.functional.normalize(z[i], dim=0) / 0.3
        expected = -sum(float(s[p] - s[others].exp().sum().log()) for p in positives) / max(len(positives), 1)
        assert losses[i].item() == pytest.approx(expected, abs=1e-12)
    assert losses[3] == 0  # it has no positive


@pytest.mark.parametrize("loss", [contrastive_plain, contrastive_in_plain])
@pytest.mark.parametrize("m", [2, 6])
def test_without_any_positive_the_plain_loss_is_0_and_so_is_its_gradient(loss: Loss, m: int) -> None:
    value, gradient = value_and_gradient(loss, projections(m), torch.arange(m), 0.1)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(m, 5, dtype=torch.float64))
