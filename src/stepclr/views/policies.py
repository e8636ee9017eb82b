"""Policies by name: which ops follow crop and flip, and their strengths and probabilities by default."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from stepclr.errors import StepclrError, nearest
from stepclr.io import plain
from stepclr.views.geometry import HorizontalFlip, QuarterTurns, Rotate, VerticalFlip
from stepclr.views.ops import AutoAugment, Blur, ColorJitter, Grayscale, Op, RandAugment, Solarize, Warp
from stepclr.views.reference import Interpolation

POLICIES = {
    "simclr": "crop and resize, flip, color jitter, grayscale, blur (SimCLR App. A)",
    "simaugment": "simclr with a sparse image warp before the blur, and bilinear crops (SupCon 14.2)",
    "autoaugment": "crop, flip, AutoAugment; autoaugment:TABLE uses the table imagenet (default), cifar10 or svhn",
    "randaugment": "crop, flip, RandAugment; randaugment:LAYERS,MAGNITUDE, by default 2,9; a magnitude is 0 to 30",
    "stacked": "crop, flip, color jitter, RandAugment at full magnitude, grayscale, warp, blur (SupCon's code)",
    "crop": "crop and resize, flip (for supervised training and linear evaluation)",
    "domain:aerial": "simclr with vertical flips, for images from above (torchgeo's SimCLR)",
    "domain:microscopy": "crop, both flips, color jitter, quarter turns (Stacke et al. 2021)",
    "domain:xray": "a large crop, flip, rotation by up to 10 degrees (MoCo-CXR)",
    "domain:document": "a large crop, no flip, color jitter, grayscale, blur, solarize (SelfDocSeg)",
}
FLIP = 0.5  # probability of the horizontal flip
TUNABLE: dict[str, tuple[type[Op], str]] = {  # settings of `Views`, and the op and its field that each of them sets
    "strength": (ColorJitter, "strength"),
    "blur": (Blur, "p"),
    "warp": (Warp, "p"),
}
ListedOp = Op | HorizontalFlip  # what a list may contain
WORDS: dict[str, type[ListedOp]] = {kind.__name__.lower(): kind for kind in get_args(ListedOp)}
WORDS |= {"grey": Grayscale, "gray": Grayscale}  # other names of the same op


@dataclass(frozen=True)
class Policy:
    """What happens to an image at one view size: crop and flip, then these ops, with these values.

    `read_policy` makes one with its default values; `tuned` replaces them.
    """

    name: str  # one line that `read_policy` reads again
    ops: tuple[Op, ...]
    min_area: float  # smallest crop, as a share of the image's area
    interpolation: Interpolation = "bicubic"  # of the crop
    flip: float = FLIP  # probability of the horizontal flip
    written: tuple[Op, ...] = ()  # those of `ops` that stand in a list, and not in a named policy

    def value(self, setting: str) -> float | None:
        """strength, blur or warp: the value in the first op that has it; None where no op does."""
        kind, field = TUNABLE[setting]
        for op in self.ops:
            if isinstance(op, kind):
                return getattr(op, field)
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

        An op that a list contains keeps its own values, so that its setting is not among them.
        """
        values = {"min_area": self.min_area}
        for setting, (kind, _) in TUNABLE.items():
            value = self.value(setting)
            if value is not None and not any(isinstance(op, kind) for op in self.written):
                values[setting] = value
        return values


def read_policy(policy: str | ListedOp | Sequence[ListedOp], size: int = 224) -> Policy:
    """The policy of this name, or of these ops, for views of side `size`.

    policy: a name of `POLICIES`, with a colon and what it allows after it; or names and ops joined by "+", such as
    "simclr+VerticalFlip+Rotate(degrees=30)"; or a list of ops. A list has the crop of the first policy that it names.

    Raises StepclrError for an unknown policy or op, and for what cannot stand after a policy's colon.
    """
    parts: Sequence[Policy | ListedOp]
    if isinstance(policy, str):
        name, parts = policy, [_read_part(text.strip(), size) for text in policy.split("+")]
    else:
        parts = list(map(_plain, [policy] if isinstance(policy, ListedOp) else policy))
        name = "+".join(map(repr, parts)) or "crop"
    if len(parts) == 1 and isinstance(parts[0], Policy):
        return parts[0]

    whole = None
    ops: list[Op] = []
    written: list[Op] = []
    flip = None
    for part in parts:
        if isinstance(part, Policy):
            whole = whole or part
            ops += part.ops
        elif isinstance(part, HorizontalFlip):
            flip = part.p
        else:
            ops.append(part)
            written.append(part)
    whole = whole or _named("crop", size)
    if flip is None:
        flip = whole.flip
    return replace(whole, name=name, ops=tuple(ops), written=tuple(written), flip=flip)


def _plain(op: object) -> ListedOp:
    """The op with Python's own numbers, so that its name can be read again."""
    if not isinstance(op, ListedOp):
        raise StepclrError(f"a policy is a name or a list of ops such as ColorJitter(); {op!r} is not an op")
    values: dict[str, Any] = {field.name: plain(getattr(op, field.name)) for field in fields(op)}
    return replace(op, **values)


def _read_part(text: str, size: int) -> Policy | ListedOp:
    """A policy by its name, or an op by its name, with or without its values: "Blur(p=0.3)", "vertical-flip"."""
    name, bracket, inside = text.partition("(")
    lower = text.lower()
    if not bracket and (lower in POLICIES or lower.partition(":")[0] in POLICIES):
        return _named(lower, size)
    kind = WORDS.get(name.strip().lower().replace("-", "").replace("_", ""))
    if kind is None:
        ops = [each.__name__ for each in get_args(ListedOp)]
        what = "op" if bracket else "policy"
        known = ops if bracket else [*POLICIES, *ops]
        raise StepclrError(
            f"unknown {what} {name!r}.{nearest(name, known)} There are the policies {', '.join(POLICIES)}, "
            f"and the ops {', '.join(ops)}"
        )
    try:
        return kind(**_values(kind, inside.removesuffix(")")))
    except StepclrError:
        raise
    except (ValueError, SyntaxError, TypeError):
        raise StepclrError(f"{text!r} is not an op; write it as {kind()!r}") from None


def _values(kind: type[ListedOp], text: str) -> dict[str, Any]:
    """The fields of an op from its arguments, such as "30, p=1"; numbers that are whole may be written so."""
    call = ast.parse(f"op({text})", mode="eval").body
    known = [field.name for field in fields(kind)]
    if not isinstance(call, ast.Call) or len(call.args) > len(known):
        raise ValueError(text)
    values = {name: ast.literal_eval(value) for name, value in zip(known, call.args, strict=False)}
    values |= {str(pair.arg): ast.literal_eval(pair.value) for pair in call.keywords}
    for field in fields(kind):
        if isinstance(field.default, float) and isinstance(values.get(field.name), int):
            values[field.name] = float(values[field.name])
    return values


def _named(text: str, size: int) -> Policy:
    """The policy of this name at this size."""
    # Strength and blur are SimCLR's for CIFAR-10 (App. B.9) up to 32 pixels, and for ImageNet (App. A) above. It crops
    # from 0.08 of the area at every size; 0.2 for small images is SupContrast's.
    small = size <= 32
    min_area = 0.2 if small else 0.08
    jitter = ColorJitter(0.5 if small else 1.0)
    blur = Blur(0.0 if small else 0.5)
    name, colon, detail = text.partition(":")
    if colon and name not in ("autoaugment", "randaugment", "domain"):
        raise StepclrError(f"policy {name!r} takes nothing after its name, not {colon + detail!r}")
    match name:
        case "simclr":
            return Policy(text, (jitter, Grayscale(), blur), min_area)
        case "simaugment":
            return Policy(text, (jitter, Grayscale(), Warp(), blur), min_area, "bilinear")
        case "autoaugment":
            return Policy(text, (AutoAugment(detail) if colon else AutoAugment(),), min_area)
        case "randaugment":
            return Policy(text, (_rand_augment(detail) if colon else RandAugment(),), min_area)
        case "stacked":
            return Policy(text, (jitter, RandAugment(2, 30), Grayscale(), Warp(), blur), min_area)
        case "domain":
            return _of_domain(text, jitter, blur, min_area)
    return Policy(text, (), min_area)


def _of_domain(name: str, jitter: ColorJitter, blur: Blur, min_area: float) -> Policy:
    """The policy for a kind of images, after the authors' code; a comment says where it differs from that."""
    match name:
        # torchgeo, `simclr_augmentations`: SimCLR's with a vertical flip. It changes no saturation and hue, which
        # images of many bands do not have.
        case "domain:aerial":
            return Policy(name, (VerticalFlip(), jitter, Grayscale(), blur), min_area)
        # Stacke et al. 2021 (2112.05760), k-stacke/ssl-pathology: its defaults have no grayscale and no blur.
        case "domain:microscopy":
            return Policy(name, (VerticalFlip(), jitter, Blur(0.0), QuarterTurns()), 0.2)
        # MoCo-CXR (2010.05352), stanfordmlgroup/MoCo-CXR: it cuts a square as large as the image allows, since small
        # crops can miss a finding. Here a crop keeps at least 0.8 of the area.
        case "domain:xray":
            return Policy(name, (Rotate(10.0, p=1.0),), 0.8)
    # SelfDocSeg (2305.00795), MaitySubhajit/SelfDocSeg: no flip. It does not crop either, and has a loss for parts of
    # the page; for whole images that would be too easy, so that here a crop keeps at least half of the page. Blur and
    # solarize have the mean probability of its two views, and saturation varies twice as much as there.
    return Policy(name, (ColorJitter(0.5), Grayscale(), blur, Solarize(p=0.1)), 0.5, flip=0.0)


def _rand_augment(detail: str) -> RandAugment:
    try:
        layers, magnitude = (int(number) for number in detail.split(","))
    except ValueError:
        raise StepclrError(
            f"policy randaugment:LAYERS,MAGNITUDE takes two whole numbers, such as randaugment:2,9, not {detail!r}"
        ) from None
    return RandAugment(layers, magnitude)
