"""The optimizers and the learning rate of SimCLR App. B: SGD, LARS and AdamW; linear warm-up, then cosine to 0."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from stepclr.config import ResolvedConfig
from stepclr.loss.objectives import OBJECTIVES

MOMENTUM = 0.9  # of SGD and LARS


class LARS(Optimizer):
    """Layer-wise adaptive rates with momentum (You, Gitman & Ginsburg 2017, 1708.03888), as SimCLR's code has them:

    g <- g + decay w;  v <- momentum v + lr trust |w| / |g| g;  w <- w - v

    The ratio is 1 where |w| or |g| is 0, and in groups with `adapt=False` (BatchNorm, biases and a classifier).
    """

    def __init__(
        self, groups: list[dict[str, object]], lr: float, momentum: float = MOMENTUM, trust: float = 0.001
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            g = torch._foreach_add([w.grad for w in weights], weights, alpha=group["weight_decay"])
            if group["adapt"]:
                sizes, slopes = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, g))
                known = (sizes > 0) & (slopes > 0)
                ratios = torch.where(known, group["trust"] * sizes / slopes, 1.0)
                torch._foreach_mul_(g, list((group["lr"] * ratios).unbind()))
            else:
                torch._foreach_mul_(g, group["lr"])
            for w in weights:
                if "momentum_buffer" not in self.state[w]:
                    self.state[w]["momentum_buffer"] = torch.zeros_like(w)
            v = [self.state[w]["momentum_buffer"] for w in weights]
            torch._foreach_mul_(v, group["momentum"])
            torch._foreach_add_(v, g)
            torch._foreach_sub_(weights, v)


def parameter_groups(
    modules: nn.Module, weight_decay: float, classifier: nn.Module | None = None
) -> list[dict[str, object]]:
    """Three groups of trainable parameters, which differ in weight decay and in LARS adaptation.

    Matrices and filters have both. The weight of a new linear `classifier` among `modules` has decay alone: SimCLR's
    code excludes it, because steps in proportion to small new weights would hardly move it. Vectors, and what the
    network itself excludes (`not_decayed`), have neither.
    """
    matrices, classifying, rest = [], [], []
    excluded = not_decayed(modules)
    of_classifier = set(classifier.parameters()) if classifier else set()
    for parameter in modules.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim <= 1 or parameter in excluded:
            rest.append(parameter)
        elif parameter in of_classifier:
            classifying.append(parameter)
        else:
            matrices.append(parameter)
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": classifying, "weight_decay": weight_decay, "adapt": False},
        {"params": rest, "weight_decay": 0.0, "adapt": False},
    ]


def not_decayed(modules: nn.Module) -> set[nn.Parameter]:
    """The parameters that the network's `no_weight_decay()` names: cls_token and pos_embed of timm's transformers."""
    excluded: set[nn.Parameter] = set()
    for module in modules.modules():
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            named = dict(module.named_parameters())
            excluded.update(named[name] for name in names() if name in named)
    return excluded


def build_optimizer(modules: nn.Module, config: ResolvedConfig) -> Optimizer:
    """The optimizer of `config` for the groups of `parameter_groups`; a head of logits is a classifier.

    Each group's `initial_lr` is the rate at the top of the schedule, which `set_lr` multiplies.
    """
    classifier = None if OBJECTIVES[config.loss].contrastive else modules.get_submodule("head")
    groups = parameter_groups(modules, config.weight_decay, classifier)
    lr = scaled_lr(config.lr, config.batch_size, config.lr_scaling)
    if config.optimizer == "lars":
        optimizer: Optimizer = LARS(groups, lr)
    elif config.optimizer == "adamw":
        optimizer = AdamW(groups, lr, fused=True)
    else:
        optimizer = SGD(groups, lr, momentum=MOMENTUM, nesterov=True, fused=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr
    return optimizer


def scaled_lr(lr: float, batch_size: int, scaling: str) -> float:
    """The rate at this batch: `lr` is given at batch 256, and grows with B ("linear") or with its root ("sqrt")."""
    share = batch_size / 256
    return lr * (share if scaling == "linear" else math.sqrt(share))


def lr_multiplier(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the top rate at step 0 .. steps - 1: linear to 1 at the end of the warm-up, then cosine to 0 at `steps`.

    A run resumed with more epochs continues at the rate that the longer schedule has at its step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2


def set_lr(optimizer: Optimizer, multiplier: float) -> float:
    """Set the learning rate of the next step, for every group of parameters; returns it."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier
    return float(optimizer.param_groups[0]["lr"])
