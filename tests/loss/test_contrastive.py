"""Step 5 against the papers: SimCLR eq. 1 and SupCon eq. 2 as loops in float64, value and gradient.

`oracle.check` compares a loss with the loops. The real losses must pass; each of the wrong ones in `FAULTS` must not.
"""

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import (
    CASES,
    GROUPS,
    IMAGES,
    LABELS,
    Loss,
    check,
    projections,
    simclr_eq_1,
    supcon_eq_2_and_3,
    value_and_gradient,
)
from torch import Tensor

from stepclr import StepclrError, contrastive, nt_xent, supcon
from stepclr.loss import tiles
from stepclr.loss.logits import cross_entropy, distillation

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def nt_xent_of_rows(z: Tensor, groups: Tensor, tau: float) -> Tensor:
    assert groups.tolist() == list(range(len(z) // 2)) * 2
    z_i, z_j = z.chunk(2)
    return nt_xent(z_i, z_j, tau)


def supcon_of_rows(z: Tensor, groups: Tensor, tau: float) -> Tensor:
    z_i, z_j = z.chunk(2)
    return supcon(z_i, z_j, groups[: len(z_i)], tau)


def copy_with_fault(fault: str) -> Loss:
    """The loss, written once more, with one thing wrong."""

    def loss(z: Tensor, groups: Tensor, tau: float) -> Tensor:
        m, half = len(z), len(z) // 2
        second = torch.arange(m) >= half
        if fault == "the second view detached":
            z = torch.where(second[:, None], z.detach(), z)
        if fault == "the first view detached":
            z = torch.where(second[:, None], z, z.detach())
        if fault == "positives mis-paired":
            groups = torch.cat([groups[:half], groups[half:].roll(1)])
        if fault == "normalized over the batch":
            z = z / z.norm(dim=0)
        elif fault != "not normalized":
            z = z / z.norm(dim=1, keepdim=True)
        if fault == "float32 inside":
            z = z.float()
        tau = {"temperature squared": tau**2, "times the temperature": 1 / tau}.get(fault, tau)
        similarity = z @ z.T / tau
        itself = torch.eye(m, dtype=torch.bool)
        positive = groups[:, None] == groups[None, :]
        if fault != "itself a positive":
            positive = positive & ~itself
        left_out = itself
        if fault == "itself in the denominator":
            left_out = torch.zeros_like(itself)
        if fault == "positives left out of the denominator":
            left_out = itself | (positive & (positive.sum(1, keepdim=True) < m - 1))
        if fault == "negatives of the other view only":
            left_out = second[:, None] == second[None, :]
        kept = similarity.masked_fill(left_out, -torch.inf)
        if fault == "denominator detached":
            kept = kept.detach()
        log_sum = kept.logsumexp(1)
        if fault == "log inside the sum":
            log_sum = similarity.masked_fill(left_out, 0.0).sum(1)
        if fault == "mean for the sum":
            log_sum = log_sum - math.log(m - 1)
        count = positive.sum(1)
        shares = {"positives counted with itself": count + 1, "positives summed": count.clamp(max=1)}
        attraction = (similarity * positive).sum(1) / shares.get(fault, count).clamp(min=1)
        if fault == "log outside the mean over positives":
            attraction = similarity.masked_fill(~positive, -torch.inf).logsumexp(1) - count.log()
        each = (log_sum - attraction)[count > 0]
        if fault == "one view's anchors only":
            each = (log_sum - attraction)[(count > 0) & ~second]
        total = each.sum() / m if fault == "divided by all anchors" else each.mean()
        total = total.double()
        return total * {"doubled": 2.0, "times tau / 0.07": tau / 0.07, "summed": len(each)}.get(fault, 1.0)

    return loss


FAULTS = [
    "not normalized",
    "normalized over the batch",
    "itself in the denominator",
    "itself a positive",
    "positives left out of the denominator",
    "negatives of the other view only",
    "positives mis-paired",
    "log inside the sum",
    "log outside the mean over positives",
    "mean for the sum",
    "the first view detached",
    "the second view detached",
    "denominator detached",
    "doubled",
    "summed",
    "divided by all anchors",
    "one view's anchors only",
    "temperature squared",
    "times the temperature",
    "times tau / 0.07",
    "positives counted with itself",
    "positives summed",
    "float32 inside",
]


@pytest.mark.parametrize(
    ("loss", "cases"),
    [(nt_xent_of_rows, IMAGES), (supcon_of_rows, IMAGES + LABELS), (contrastive, GROUPS + CASES)],
    ids=["nt_xent", "supcon", "contrastive"],
)
def test_the_loss_and_its_gradient_are_those_of_the_papers(loss: Loss, cases: list[tuple[list[int], float]]) -> None:
    check(loss, cases if loss is contrastive else [(labels * 2, tau) for labels, tau in cases])


def test_the_check_passes_a_second_correct_loss() -> None:
    check(copy_with_fault("none"), CASES)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_rejects_a_loss_with(fault: str) -> None:
    with pytest.raises(AssertionError):
        check(copy_with_fault(fault), CASES)


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_nt_xent_is_simclrs_equation_1(tau: float) -> None:
    z_i, z_j = (projections(8, seed=seed).requires_grad_() for seed in (1, 2))
    loss, expected = nt_xent(z_i, z_j, tau), simclr_eq_1(z_i, z_j, tau)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for own, theirs in zip(*(torch.autograd.grad(value, (z_i, z_j)) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-10, atol=1e-12)


# Labels of N images with V views each: unequal classes, some or all of them missing.
MIXED = [([0, 0, -1, 1, 0, -1], 3, 0.1), ([2, -1, 2, 2], 4, 0.5), ([-1, -1, -1], 3, 0.2), ([4, 4, 4], 2, 0.3)]


@pytest.mark.parametrize(("labels", "views", "tau"), MIXED)
def test_supcon_takes_any_number_of_views_and_labels_that_are_missing(
    labels: list[int], views: int, tau: float
) -> None:
    own_class = [label if label >= 0 else 100 + k for k, label in enumerate(labels)]

    def of_views(z: Tensor, _: Tensor, tau: float) -> Tensor:
        z_i, *z_j = z.chunk(views)
        return supcon(z_i, z_j, torch.tensor(labels), tau)

    check(of_views, [(own_class * views, tau)])
    if max(labels) < 0:
        z_i, *z_j = projections(len(labels) * views).chunk(views)
        assert supcon(z_i, z_j, np.array(labels), tau) == nt_xent(z_i, z_j, tau)


# With views of each image in the batch every anchor has a positive; and these take the batch for two views.
TWO_VIEWS = {"divided by all anchors", "positives mis-paired", "negatives of the other view only"}


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - TWO_VIEWS))
def test_the_check_rejects_three_views_with(fault: str) -> None:
    own_class = [[label if label >= 0 else 100 + k for k, label in enumerate(labels)] for labels, _, _ in MIXED]
    cases = [(ids * views, tau) for ids, (_, views, tau) in zip(own_class, MIXED, strict=True)]
    with pytest.raises(AssertionError):
        check(copy_with_fault(fault), cases)


def test_nt_xent_of_four_views_has_three_positives_an_anchor() -> None:
    check(
        lambda z, _, tau: nt_xent(z[:3], list(z[3:].chunk(3)), tau),
        [([0, 1, 2] * 4, 0.5)],
    )


def test_cross_entropy_leaves_out_what_has_no_label() -> None:
    logits = projections(5, width=3)
    labels = torch.tensor([2, -1, 0, -1, 1])

    def by_hand(z: Tensor, *_: object) -> Tensor:
        rows = [-(z[k, y] - z[k].exp().sum().log()) for k, y in enumerate(labels.tolist()) if y >= 0]
        return torch.stack(rows).mean()

    for loss in (by_hand, lambda z, *_: cross_entropy(z, labels)):
        found = value_and_gradient(loss, logits, labels, 1.0)
        for value, wanted in zip(found, value_and_gradient(by_hand, logits, labels, 1.0), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    value, gradient = value_and_gradient(lambda z, *_: cross_entropy(z, torch.full((5,), -1)), logits, labels, 1.0)
    assert value == 0
    assert (gradient == 0).all()
    assert cross_entropy(1e3 * logits.half(), labels).isfinite()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_distillation_is_simclrv2s_equation_2(temperature: float) -> None:
    student, teacher = projections(6, width=4), projections(6, width=4, seed=1).requires_grad_()

    def by_hand(z: Tensor, *_: object) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row, target in zip(z, teacher.detach(), strict=True):
            q = (target / temperature).exp() / (target / temperature).exp().sum()
            p = (row / temperature).exp() / (row / temperature).exp().sum()
            total = total - (q * p.log()).sum()
        return total / len(z)

    own = value_and_gradient(lambda z, *_: distillation(z, teacher, temperature), student, student, 1.0)
    for value, wanted in zip(own, value_and_gradient(by_hand, student, student, 1.0), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-12)
    assert teacher.grad is None  # and the teacher learns nothing
    alike = value_and_gradient(lambda z, *_: distillation(z, teacher, temperature), teacher.detach(), student, 1.0)
    assert alike[1].abs().max() < 1e-15  # a student that predicts what the teacher does has nothing to learn


def test_the_gradient_is_the_limit_of_differences() -> None:
    groups = torch.tensor([0, 1, 0, 2, 1, 1])
    z = (projections(6) / 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: contrastive(rows, groups, 0.3), (z,))


def test_the_default_temperatures_are_a_half_and_a_tenth() -> None:
    z_i, z_j = projections(6, seed=1), projections(6, seed=2)
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    assert nt_xent(z_i, z_j) == nt_xent(z_i, z_j, temperature=0.5)
    assert supcon(z_i, z_j, labels) == supcon(z_i, z_j, labels, temperature=0.1)


def check_missing_labels(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    z_i, z_j = projections(7, seed=1), projections(7, seed=2)
    for given, meant in (
        ([4, -1, 4, 0, -1, 0, -1], [4, 11, 4, 0, 12, 0, 13]),
        ([-1] * 7, [0, 1, 2, 3, 4, 5, 6]),
        ([2, 2, -1, 2, 2, 2, 2], [2, 2, 9, 2, 2, 2, 2]),
    ):
        expected = supcon_eq_2_and_3(torch.cat([z_i, z_j]), torch.tensor(meant).repeat(2), 0.1)
        torch.testing.assert_close(loss(z_i, z_j, torch.tensor(given)), expected, rtol=1e-12, atol=1e-12)


def test_an_image_without_a_label_is_a_class_of_its_own() -> None:
    check_missing_labels(supcon)
    with pytest.raises(AssertionError):  # the test of the test: all images without a label as one class
        check_missing_labels(lambda z_i, z_j, labels: contrastive(torch.cat([z_i, z_j]), labels.repeat(2), 0.1))


def test_supcon_without_any_label_is_nt_xent() -> None:
    z_i, z_j = projections(9, seed=3), projections(9, seed=4)
    assert supcon(z_i, z_j, torch.full((9,), -1), 0.5) == nt_xent(z_i, z_j, 0.5)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.int8])
def test_labels_may_be_integers_of_any_size_in_torch_or_numpy(kind: type[np.integer]) -> None:
    """Also where the largest label is the largest that fits and hundreds of images have none."""
    labels = np.array([127, 0, 5, *range(120, 127), *[-1] * 290])
    z_i, z_j = projections(300, seed=1), projections(300, seed=2)
    expected = supcon(z_i, z_j, torch.from_numpy(labels))
    assert supcon(z_i, z_j, labels.astype(kind)) == expected
    assert supcon(z_i, z_j, torch.from_numpy(labels.astype(kind))) == expected


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.5, 10.0])
@pytest.mark.parametrize("n", [1, 2, 8, 100])
def test_collapsed_projections_cost_log_of_m_minus_1(n: int, tau: float) -> None:
    z = torch.ones(n, 4) * 3
    expected = pytest.approx(math.log(2 * n - 1), abs=2e-5)
    assert nt_xent(z, z, tau).item() == expected
    assert supcon(z, z, torch.arange(n) % 3, tau).item() == expected


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_projections_at_right_angles_have_the_closed_form(tau: float) -> None:
    n = 6
    z = torch.eye(n, 9, dtype=torch.float64)
    perfect = math.log(math.exp(1 / tau) + 2 * n - 2) - 1 / tau
    worst = math.log(math.exp(-1 / tau) + 2 * n - 2) + 1 / tau
    assert nt_xent(z, 5 * z, tau).item() == pytest.approx(perfect, rel=1e-12)
    assert nt_xent(z, -5 * z, tau).item() == pytest.approx(worst, rel=1e-12)
    # Two classes of three images, each class collapsed: five positives, six negatives.
    collapsed = z[[0, 0, 0, 1, 1, 1]]
    classes = math.log(5 * math.exp(1 / tau) + 6) - 1 / tau
    assert supcon(collapsed, collapsed, torch.tensor([0, 0, 0, 1, 1, 1]), tau).item() == pytest.approx(
        classes, rel=1e-12
    )


def test_only_the_directions_of_projections_count() -> None:
    z_i, z_j = projections(6, seed=1).requires_grad_(), projections(6, seed=2)
    loss = nt_xent(z_i, z_j)
    lengths = torch.tensor([1e-6, 1e-3, 1.0, 10.0, 1e3, 1e6], dtype=torch.float64)[:, None]
    torch.testing.assert_close(nt_xent(z_i.detach() * lengths, z_j * lengths.flip(0)), loss.detach(), rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(loss, z_i)
    assert (gradient * z_i).sum(1).abs().max() < 1e-14
    assert gradient.abs().max() > 1e-4


def test_neither_the_order_of_images_nor_of_views_matters() -> None:
    z_i, z_j, order = projections(8, seed=1), projections(8, seed=2), torch.randperm(8)
    labels = torch.tensor([0, 1, 0, -1, 2, 2, 1, -1])
    loss = supcon(z_i, z_j, labels)
    torch.testing.assert_close(supcon(z_j, z_i, labels), loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(supcon(z_i[order], z_j[order], labels[order]), loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 0.01), (torch.float16, 0.002)], ids=str
)
@pytest.mark.parametrize("tau", [0.01, 0.07, 0.5])
def test_small_floats_and_small_temperatures_stay_close_to_float64(
    tau: float, dtype: torch.dtype, close: float, device: str
) -> None:
    """bf16 and fp16 are only storage: the loss of the same numbers in float64 is met to float32's accuracy."""
    groups = torch.tensor([0, 1, 2, 2, 3, 4, 4, 4, 0, 1, 5])
    z = projections(11, width=16, seed=6, dtype=dtype)
    z[0] *= 1000 / z[0].abs().max()  # its squares do not fit into fp16
    value, gradient = value_and_gradient(contrastive, z.to(device), groups.to(device), tau)
    expected, slope = value_and_gradient(supcon_eq_2_and_3, z.double(), groups, tau)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert gradient.isfinite().all()
    lengths = z.double().norm(dim=1, keepdim=True)
    error = ((gradient.cpu().double() - slope) * lengths).norm() / (slope * lengths).norm()
    assert error < close


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_around_the_loss_changes_nothing(dtype: torch.dtype, device: str) -> None:
    z, groups = projections(12, seed=3, dtype=dtype).to(device), (torch.arange(12) % 5).to(device)

    def under_autocast(z: Tensor, groups: Tensor, tau: float) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return contrastive(z, groups, tau)

    alone, inside = (value_and_gradient(loss, z, groups, 0.1) for loss in (contrastive, under_autocast))
    assert all(torch.equal(a, b) for a, b in zip(alone, inside, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tau", [0.1, 0.02])
def test_autocast_around_the_gradient_changes_nothing(tau: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a tile is kept or computed again, and for second derivatives too."""
    z, groups = projections(40, seed=3, dtype=torch.float32).to(device), (torch.arange(40) % 9).to(device)

    def gradients(again: bool) -> list[Tensor]:
        leaf = z.clone().requires_grad_()
        value = contrastive(leaf, groups, tau)
        first = torch.autograd.grad(value, leaf, retain_graph=True, create_graph=again)[0]
        with torch.autocast(device, enabled=False):  # torch's own products of the second derivative would be rounded
            return [first, torch.autograd.grad(first.square().sum(), leaf)[0]] if again else [first]

    for room in (tiles.KEPT_NUMBERS, 0):
        monkeypatch.setattr(tiles, "KEPT_NUMBERS", room)
        for again in (False, True):
            alone = gradients(again)
            with torch.autocast(device, torch.bfloat16):
                inside = gradients(again)
            assert all(torch.equal(a, b) for a, b in zip(alone, inside, strict=True))


def test_many_threads_leave_the_users_precision_as_it_was() -> None:
    """Where one begins before another ends, none may take the setting of the other for the user's."""
    before = torch.backends.cuda.matmul.fp32_precision
    inside = threading.Barrier(2)

    def first() -> None:
        with tiles.exact_products():
            inside.wait(10)
            inside.wait(10)

    thread = threading.Thread(target=first)
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        thread.start()
        inside.wait(10)  # the first has begun
        with tiles.exact_products():
            inside.wait(10)  # and ends before the second
            thread.join(10)
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("unchecked")
def test_a_temperature_of_none_is_named() -> None:
    none: Any = None
    with pytest.raises(StepclrError, match="temperature must be a number above 0, not None"):
        contrastive(projections(4), torch.arange(2).repeat(2), none)


@pytest.mark.parametrize("m", [1, 2, 6])
def test_a_batch_without_any_positive_has_loss_0_and_gradient_0(m: int) -> None:
    value, gradient = value_and_gradient(contrastive, projections(m), torch.arange(m), 0.1)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(m, 5, dtype=torch.float64))


def test_an_anchor_without_a_positive_is_left_out_of_the_mean_but_stays_a_negative() -> None:
    z, groups = projections(5, seed=8), torch.tensor([0, 0, 1, 1, 2])
    value, gradient = value_and_gradient(contrastive, z, groups, 0.5)
    terms = [supcon_eq_2_and_3(z[rows], groups[rows], 0.5) for rows in ([0, 1, 2, 3],)]
    assert value > terms[0]  # with one negative more
    assert gradient[4].norm() > 0
    assert gradient.isfinite().all()


def test_a_projection_of_zeros_does_not_give_nan() -> None:
    z = projections(6, dtype=torch.float32)
    z[2] = 0
    value, gradient = value_and_gradient(contrastive, z, torch.arange(3).repeat(2), 0.5)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z, _: nt_xent(z, z, 0.0), "temperature"),
        (lambda z, _: nt_xent(z, z, -0.5), "temperature"),
        (lambda z, _: nt_xent(z, z, math.nan), "temperature"),
        (lambda z, _: nt_xent(z, z[:5]), r"\[6, 5\] and \[5, 5\]"),
        (lambda z, _: nt_xent(z, z[:, :4]), r"\[6, 5\] and \[6, 4\]"),
        (lambda z, labels: supcon(z, z, labels[:5]), "6 images but 5 labels"),
        (lambda z, labels: contrastive(z, labels[:5], 0.5), "6 projections but 5"),
        (lambda z, labels: contrastive(z[0], labels[:5], 0.5), r"\[5\]"),
        (lambda z, _: nt_xent(z, [z, z[:2]]), r"\[6, 5\] and \[2, 5\]"),
        (lambda z, _: distillation(z, z[:, :3]), r"\[6, 5\] and \[6, 3\]"),
        (lambda z, _: distillation(z, z, 0.0), "temperature"),
    ],
)
def test_input_that_cannot_be_used_is_answered_in_one_line(
    call: Callable[[Tensor, Tensor], Tensor], words: str
) -> None:
    with pytest.raises(StepclrError, match=words) as error:
        call(projections(6), torch.zeros(6, dtype=torch.int64))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_compiled_step_calls_the_loss_as_it_is() -> None:
    z = projections(6).requires_grad_()

    def step(z: Tensor) -> Tensor:
        z_i, z_j = torch.tanh(z).chunk(2)
        return 2 * nt_xent(z_i, z_j)

    (expected,) = torch.autograd.grad(step(z), z)
    (slope,) = torch.autograd.grad(torch.compile(step, backend="eager")(z), z)
    assert torch.equal(slope, expected)
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="runs uncompiled; compile without fullgraph=True"):
        torch.compile(step, backend="eager", fullgraph=True)(z)
