"""Optimizers and learning rates of step 6 against SimCLR App. B, as loops in float64 and closed forms."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from stepclr.config import ResolvedConfig
from stepclr.model.build import build_encoder
from stepclr.pretraining.optim import LARS, build_optimizer, lr_multiplier, scaled_lr

Schedule = Callable[[int, int, int, float], float]  # of step, steps, warm-up steps and peak
OPTIMIZERS: tuple[Literal["sgd", "lars", "adamw"], ...] = ("sgd", "lars", "adamw")


def lars_by_hand(
    w: list[float], gradients: list[list[float]], rates: list[float], decay: float, adapt: bool
) -> list[float]:
    """The authors' LARS (momentum 0.9, trust 0.001), a number at a time."""
    v = [0.0] * len(w)
    for gradient, rate in zip(gradients, rates, strict=True):
        g = [slope + decay * weight for slope, weight in zip(gradient, w, strict=True)]
        size, slope_size = math.hypot(*w), math.hypot(*g)
        ratio = 0.001 * size / slope_size if adapt and size > 0 and slope_size > 0 else 1.0
        v = [0.9 * old + rate * ratio * slope for old, slope in zip(v, g, strict=True)]
        w = [weight - change for weight, change in zip(w, v, strict=True)]
    return w


@pytest.mark.parametrize("adapt", [True, False], ids=["adapted", "excluded"])
@pytest.mark.parametrize("decay", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("start", ["random", "zero"])
@pytest.mark.parametrize("silent", [(), (1, 2), (0, 1, 2, 3, 4, 5)], ids=["", "some gradients zero", "all zero"])
def test_lars_takes_the_steps_of_the_authors_code(
    adapt: bool, decay: float, start: str, silent: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(3, 4, generator=generator, dtype=torch.float64) * (start == "random")
    gradients = [torch.randn(3, 4, generator=generator, dtype=torch.float64) * (t not in silent) for t in range(6)]
    rates = [1.0, 2.0, 3.0, 2.5, 1.5, 0.5]  # the rate is inside the momentum, so that its changes matter
    parameter = nn.Parameter(w.clone())
    optimizer = LARS([{"params": [parameter], "weight_decay": decay, "adapt": adapt}], lr=0.0)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        optimizer.step()
    flat = [gradient.flatten().tolist() for gradient in gradients]
    expected = lars_by_hand(w.flatten().tolist(), flat, rates, decay, adapt)
    torch.testing.assert_close(
        parameter.detach().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13
    )


def test_lars_leaves_alone_what_has_no_gradient() -> None:
    model = nn.Linear(3, 2)
    before = model.bias.detach().clone()
    optimizer = LARS([{"params": list(model.parameters()), "weight_decay": 0.1}], lr=1.0)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert torch.equal(model.bias, before)


def settings(optimizer: Literal["sgd", "lars", "adamw"], lr: float, decay: float) -> ResolvedConfig:
    return ResolvedConfig(
        optimizer=optimizer,
        lr=lr,
        weight_decay=decay,
        encoder="resnet18",
        size=32,
        min_area=0.2,
        interpolation="bicubic",
        temperature=0.5,
        warmup=0.0,
        epochs=1,
        precision="fp32",
    )


def model_and_optimizer(name: Literal["sgd", "lars", "adamw"], decay: float = 0.1) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5))
    for parameter in body.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return body, build_optimizer(body, settings(name, 0.5, decay))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_shrinks_weights_but_neither_norms_nor_biases(name: Literal["sgd", "lars", "adamw"]) -> None:
    model, optimizer = model_and_optimizer(name)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = {key for key, value in model.named_parameters() if (value < before[key]).all()}
    unchanged = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert shrunk == {"0.weight", "3.weight"}
    assert unchanged == before.keys() - shrunk


@pytest.mark.parametrize(("name", "factor"), [("sgd", 0.5 * 1.9), ("lars", 0.5)])
def test_norms_and_biases_take_the_plain_step(name: Literal["sgd", "lars"], factor: float) -> None:
    """No adaptation: rate x gradient (x 1.9 at the first step with Nesterov momentum 0.9)."""
    model, optimizer = model_and_optimizer(name)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.2)
    optimizer.step()
    steps = {key: before[key] - value.detach() for key, value in model.named_parameters()}
    for key in before.keys() - {"0.weight", "3.weight"}:
        torch.testing.assert_close(steps[key], torch.full_like(steps[key], 0.2 * factor))
    if name == "lars":
        for key in ("0.weight", "3.weight"):  # the length of a step is rate x trust x the weight's own length
            assert steps[key].norm().item() == pytest.approx(0.5 * 0.001 * before[key].norm().item(), rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_trainable_parameter_is_in_the_optimizer_once(name: Literal["sgd", "lars", "adamw"]) -> None:
    model, optimizer = model_and_optimizer(name)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    frozen = nn.Linear(3, 3)
    frozen.bias.requires_grad_(False)
    groups = build_optimizer(frozen, settings(name, 0.1, 0.0)).param_groups
    assert [parameter is frozen.weight for group in groups for parameter in group["params"]] == [True]


def test_sgd_has_nesterov_momentum_of_0_9() -> None:
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer(nn.ParameterList([w]), settings("sgd", 0.1, 0.0))
    expected, v = 1.0, 0.0
    for slope in (1.0, -2.0, 0.5):
        w.grad = torch.full_like(w, slope)
        optimizer.step()
        v = 0.9 * v + slope
        expected -= 0.1 * (slope + 0.9 * v)
    torch.testing.assert_close(w.detach(), torch.full((2, 2), expected))


@pytest.mark.parametrize(
    ("lr", "scaling", "batch", "peak"),
    [
        (0.3, "linear", 256, 0.3),
        (0.3, "linear", 4096, 4.8),  # SimCLR App. B: 0.3 x 4096 / 256
        (0.3, "linear", 64, 0.075),
        (1.2, "sqrt", 256, 1.2),  # 0.075 sqrt(B) is 1.2 at batch 256
        (1.2, "sqrt", 1024, 0.075 * 32),
        (1.2, "sqrt", 64, 0.075 * 8),
    ],
)
def test_the_rate_is_for_batch_256_and_grows_with_the_batch(
    lr: float, scaling: Literal["linear", "sqrt"], batch: int, peak: float
) -> None:
    assert scaled_lr(lr, batch, scaling) == pytest.approx(peak, rel=1e-12)


def check_schedule(schedule: Schedule) -> None:
    """Fail unless the rate climbs linearly to its peak, then falls by a cosine at every step, to 0 after the last."""
    for steps, warmup, peak in ((1000, 100, 0.3), (90, 10, 4.8), (50, 0, 1.0), (7, 3, 0.1)):
        rates = [schedule(step, steps, warmup, peak) for step in range(steps)]
        for step in range(warmup):
            assert rates[step] == pytest.approx(peak * (step + 1) / warmup, rel=1e-12)
        assert max(rates) == pytest.approx(peak, rel=1e-12)
        assert rates[warmup] == pytest.approx(peak, rel=1e-12)
        for step in range(warmup, steps):
            share = (step - warmup) / (steps - warmup)
            assert rates[step] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * share)), rel=1e-9)
        falling = rates[warmup:]
        assert all(later < earlier for earlier, later in pairwise(falling))
        assert schedule(steps, steps, warmup, peak) == pytest.approx(0, abs=1e-12)
        assert 0 < rates[-1] <= peak * (math.pi / (steps - warmup)) ** 2


def cosine(step: float, steps: float, warmup: float, peak: float) -> float:
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def rate_at(step: int, steps: int, warmup: int, peak: float) -> float:
    return peak * lr_multiplier(step, steps, warmup)


EPOCH = 10  # steps in an epoch of the wrong schedules
WRONG: dict[str, Schedule] = {
    "stepped an epoch at a time": lambda t, n, w, p: p * (t + 1) / w if t < w else cosine(t - t % EPOCH, n, w, p),
    "period in steps but stepped an epoch at a time": lambda t, n, w, p: rate_at(t // EPOCH, n, w, p),
    "no warm-up": lambda t, n, _, p: cosine(t, n, 0, p),
    "cosine from the first step on": lambda t, n, w, p: p * (t + 1) / w if t < w else cosine(t, n, 0, p),
    "first step without a rate": lambda t, n, w, p: p * t / w if t < w else cosine(t, n, w, p),
    "never reaches 0": lambda t, n, w, p: rate_at(t, n + EPOCH, w, p),
    "linear decay": lambda t, n, w, p: p * (t + 1) / w if t < w else p * (n - t) / (n - w),
    "constant": lambda t, _, w, p: p * min(1.0, (t + 1) / max(w, 1)),
}


def test_the_rate_warms_up_linearly_and_falls_by_a_cosine_at_every_step() -> None:
    check_schedule(rate_at)


@pytest.mark.parametrize("wrong", WRONG)
def test_the_check_rejects_a_schedule_that_is(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check_schedule(WRONG[wrong])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (3, 10)])
def test_a_run_of_hardly_any_steps_has_finite_rates(steps: int, warmup: int) -> None:
    rates = [rate_at(step, steps, warmup, 0.3) for step in range(steps + 1)]
    assert all(0 <= rate <= 0.3 for rate in rates)
    assert rates[0] > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_a_timm_network_excludes_has_no_decay(name: Literal["sgd", "lars", "adamw"]) -> None:
    encoder = build_encoder("test_vit", size=32)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    groups = build_optimizer(encoder, settings(name, 0.1, 0.3)).param_groups
    decays = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays.keys() == set(names.values())
    assert decays["body.cls_token"] == decays["body.pos_embed"] == decays["body.norm.bias"] == 0
    assert decays["body.blocks.0.mlp.fc1.weight"] == decays["body.patch_embed.proj.weight"] == 0.3


@pytest.mark.parametrize("loss", ["nt-xent", "cross-entropy", "distill"])
def test_lars_adapts_a_head_of_projections_but_not_one_of_logits(loss: str) -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "head": nn.Linear(4, 3)})
    groups = build_optimizer(model, replace(settings("lars", 0.1, 0.3), loss=loss)).param_groups
    adapted = {id(parameter) for group in groups if group["adapt"] for parameter in group["params"]}
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    encoder, head = (id(model[part].weight) for part in ("encoder", "head"))
    assert adapted == ({encoder, head} if loss == "nt-xent" else {encoder})
    assert decayed == {encoder, head}
