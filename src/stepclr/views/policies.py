"""Policies by name: which ops come after crop and flip, and what their strengths and probabilities are by default."""

import ast
from collections.abc import Sequence
from typing import get_args

from stepclr.errors import StepclrError, choose
from stepclr.views.ops import AutoAugment, Blur, ColorJitter, Grey, Op, RandAugment, Warp

POLICIES = {
    "simclr": "crop and resize, flip, color jitter, grey, blur (SimCLR App. A)",
    "simaugment": "simclr with a sparse image warp before the blur, bilinear crops (SupCon 14.2)",
    "autoaugment": "crop, flip, AutoAugment; autoaugment:TABLE has the table imagenet (default), cifar10 or svhn",
    "randaugment": "crop, flip, RandAugment; randaugment:LAYERS,MAGNITUDE, by default 2,9, magnitude of 0 .. 30",
    "stacked": "crop, flip, color jitter, RandAugment at full magnitude, grey, warp, blur (SupCon's code)",
    "crop": "crop and resize, flip (what supervised training and linear evaluation use)",
}


def size_defaults(size: int) -> dict[str, float]:
    """SimCLR's strength, blur and min_area by view size S: CIFAR's settings up to 32 pixels, ImageNet's above."""
    if size <= 32:
        return {"strength": 0.5, "blur": 0.0, "min_area": 0.2}
    return {"strength": 1.0, "blur": 0.5, "min_area": 0.08}


def policy_defaults(policy: str | Sequence[Op], size: int) -> dict[str, float | None]:
    """A policy's strength, blur, warp and min_area at view size S, None where it has no such op.

    Raises StepclrError for an unknown policy.
    """
    ops = policy_ops(policy, size)
    return {
        "strength": next((op.strength for op in ops if isinstance(op, ColorJitter)), None),
        "blur": next((op.p for op in ops if isinstance(op, Blur)), None),
        "warp": next((op.p for op in ops if isinstance(op, Warp)), None),
        "min_area": size_defaults(size)["min_area"],
    }


def policy_ops(policy: str | Sequence[Op], size: int = 224) -> tuple[Op, ...]:
    """The ops of a policy, after crop and flip; those of a sequence, or of its `policy_name`, are its own.

    Raises StepclrError for an unknown policy or op, or for what cannot stand after a policy's colon.
    """
    if not isinstance(policy, str):
        for op in policy:
            if not isinstance(op, Op):
                raise StepclrError(f"a policy is a name or a list of ops as ColorJitter(), but {op!r} is no op")
        return tuple(policy)
    if "(" in policy:
        return tuple(_read_op(text.strip()) for text in policy.split("+"))
    name, colon, detail = policy.partition(":")
    choose("policy", name, POLICIES)
    if colon and name not in ("autoaugment", "randaugment"):
        raise StepclrError(f"policy {name!r} takes nothing after its name, not {colon + detail!r}")
    defaults = size_defaults(size)
    jitter, blur = ColorJitter(defaults["strength"]), Blur(defaults["blur"])
    match name:
        case "simclr":
            return jitter, Grey(), blur
        case "simaugment":
            return jitter, Grey(), Warp(), blur
        case "autoaugment":
            return (AutoAugment(detail) if colon else AutoAugment(),)
        case "randaugment":
            return (_rand_augment(detail) if colon else RandAugment(),)
        case "stacked":
            return jitter, RandAugment(2, 30), Grey(), Warp(), blur
    return ()


def policy_name(policy: str | Sequence[Op]) -> str:
    """A policy in one line: its name, or its ops as they print, which `policy_ops` reads again."""
    return policy if isinstance(policy, str) else "+".join(map(repr, policy_ops(policy))) or "crop"


def _read_op(text: str) -> Op:
    name, _, inside = text.removesuffix(")").partition("(")
    kinds = {kind.__name__: kind for kind in get_args(Op)}
    kind = kinds[choose("op", name, kinds)]
    try:
        pairs = (pair.partition("=") for pair in inside.split(",") if pair.strip())
        op: Op = kind(**{key.strip(): ast.literal_eval(value.strip()) for key, _, value in pairs})
    except StepclrError:
        raise
    except (ValueError, SyntaxError, TypeError):
        raise StepclrError(f"{text!r} is no op; one is written as {kind()!r}") from None
    return op


def _rand_augment(detail: str) -> RandAugment:
    try:
        layers, magnitude = (int(number) for number in detail.split(","))
    except ValueError:
        raise StepclrError(
            f"policy randaugment:LAYERS,MAGNITUDE takes two whole numbers as in randaugment:2,9, not {detail!r}"
        ) from None
    return RandAugment(layers, magnitude)
