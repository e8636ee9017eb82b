"""Policies by name: which ops follow crop and flip, and their strengths and probabilities by default."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from stepclr.errors import StepclrError, choose
from stepclr.views.ops import AutoAugment, Blur, ColorJitter, Grayscale, Op, RandAugment, Warp
from stepclr.views.reference import Interpolation

POLICIES = {
    "simclr": "crop and resize, flip, color jitter, grayscale, blur (SimCLR App. A)",
    "simaugment": "simclr with a sparse image warp before the blur, and bilinear crops (SupCon 14.2)",
    "autoaugment": "crop, flip, AutoAugment; autoaugment:TABLE uses the table imagenet (default), cifar10 or svhn",
    "randaugment": "crop, flip, RandAugment; randaugment:LAYERS,MAGNITUDE, by default 2,9; a magnitude is 0 to 30",
    "stacked": "crop, flip, color jitter, RandAugment at full magnitude, grayscale, warp, blur (SupCon's code)",
    "crop": "crop and resize, flip (for supervised training and linear evaluation)",
}
TUNABLE: dict[str, tuple[type[Op], str]] = {  # settings of `Views`, and the op and its field that each of them sets
    "strength": (ColorJitter, "strength"),
    "blur": (Blur, "p"),
    "warp": (Warp, "p"),
}


@dataclass(frozen=True)
class Policy:
    """What happens to an image at one view size: crop and flip, then these ops, with these values.

    `read_policy` makes one with its default values; `tuned` replaces them.
    """

    name: str  # one line that `read_policy` reads again
    ops: tuple[Op, ...]
    min_area: float  # smallest crop, as a share of the image's area
    interpolation: Interpolation = "bicubic"  # of the crop

    def value(self, setting: str) -> float | None:
        """strength, blur or warp: the value in the first op that has it; None where no op does."""
        kind, field = TUNABLE[setting]
        for op in self.ops:
            if isinstance(op, kind):
                number: float = getattr(op, field)
                return number
        return None

    def tuned(self, settings: Mapping[str, float | None]) -> "Policy":
        """The policy with these values of strength, blur and warp in all ops that have them; None: as it is.

        Raises StepclrError for a value that no op has, or that is out of range.
        """
        ops = self.ops
        for setting, value in settings.items():
            kind, field = TUNABLE[setting]
            if value is None:
                continue
            if self.value(setting) is None:
                users = [name for name in POLICIES if read_policy(name).value(setting) is not None]
                raise StepclrError(f"policy {self.name} does not use {setting}; these do: {', '.join(users)}")
            change: dict[str, Any] = {field: value}
            ops = tuple(replace(op, **change) if isinstance(op, kind) else op for op in ops)
        return replace(self, ops=ops)

    def defaults(self) -> dict[str, float]:
        """The values of strength, blur, warp and min_area that a run's settings may replace.

        The ops of a list keep their own values, so that for them this is min_area alone.
        """
        values = {setting: None if "(" in self.name else self.value(setting) for setting in TUNABLE}
        return {setting: value for setting, value in values.items() if value is not None} | {"min_area": self.min_area}


def read_policy(policy: str | Sequence[Op], size: int = 224) -> Policy:
    """The policy of this name, or of these ops, for views of side `size`.

    policy: a name of `POLICIES`, with a colon and what it allows after it; or ops, in a list or as they print, joined
    by "+", such as "ColorJitter(strength=0.5)+Blur(p=0.3)".

    Raises StepclrError for an unknown policy or op, and for what cannot stand after a policy's colon.
    """
    # Strength and blur are SimCLR's for CIFAR-10 (App. B.9) up to 32 pixels, and for ImageNet (App. A) above. It crops
    # from 0.08 of the area at every size; 0.2 for small images is SupContrast's.
    small = size <= 32
    min_area = 0.2 if small else 0.08
    if not isinstance(policy, str):
        for op in policy:
            if not isinstance(op, Op):
                raise StepclrError(f"a policy is a name or a list of ops such as ColorJitter(); {op!r} is not an op")
        return Policy("+".join(map(repr, policy)) or "crop", tuple(policy), min_area)
    if "(" in policy:
        ops = [_read_op(text.strip()) for text in policy.split("+")]
        return Policy(policy, tuple(ops), min_area)
    name, colon, detail = policy.partition(":")
    choose("policy", name, POLICIES)
    if colon and name not in ("autoaugment", "randaugment"):
        raise StepclrError(f"policy {name!r} takes nothing after its name, not {colon + detail!r}")
    jitter = ColorJitter(0.5 if small else 1.0)
    blur = Blur(0.0 if small else 0.5)
    match name:
        case "simclr":
            return Policy(policy, (jitter, Grayscale(), blur), min_area)
        case "simaugment":
            return Policy(policy, (jitter, Grayscale(), Warp(), blur), min_area, "bilinear")
        case "autoaugment":
            return Policy(policy, (AutoAugment(detail) if colon else AutoAugment(),), min_area)
        case "randaugment":
            return Policy(policy, (_rand_augment(detail) if colon else RandAugment(),), min_area)
        case "stacked":
            return Policy(policy, (jitter, RandAugment(2, 30), Grayscale(), Warp(), blur), min_area)
    return Policy(policy, (), min_area)


def _read_op(text: str) -> Op:
    """An op as it prints, such as "Blur(p=0.3)"."""
    name, _, inside = text.removesuffix(")").partition("(")
    kinds: dict[str, type[Op]] = {kind.__name__: kind for kind in get_args(Op)}
    if name in ("Grey", "Gray"):  # other names of the same op
        name = "Grayscale"
    kind = kinds[choose("op", name, kinds)]
    try:
        pairs = (pair.partition("=") for pair in inside.split(",") if pair.strip())
        return kind(**{key.strip(): ast.literal_eval(value.strip()) for key, _, value in pairs})
    except StepclrError:
        raise
    except (ValueError, SyntaxError, TypeError):
        raise StepclrError(f"{text!r} is not an op; write it as {kind()!r}") from None


def _rand_augment(detail: str) -> RandAugment:
    try:
        layers, magnitude = (int(number) for number in detail.split(","))
    except ValueError:
        raise StepclrError(
            f"policy randaugment:LAYERS,MAGNITUDE takes two whole numbers, such as randaugment:2,9, not {detail!r}"
        ) from None
    return RandAugment(layers, magnitude)
