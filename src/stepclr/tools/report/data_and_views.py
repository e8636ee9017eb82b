"""Steps 1 and 2 on a page: the images, and what the views do to them."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from stepclr.tools.images import thumbnail_uri
from stepclr.tools.report.context import Material
from stepclr.tools.report.plots import bars
from stepclr.tools.spread import spread
from stepclr.views.autoaugment import OPS
from stepclr.views.keys import view_keys
from stepclr.views.ops import (
    CONTROL_POINTS,
    Blur,
    BlurParams,
    ColorJitter,
    Grayscale,
    GrayscaleParams,
    JitterParams,
    OpParams,
    TableParams,
    Warp,
    WarpParams,
)
from stepclr.views.reference import apply_op, crop_resize_flip
from stepclr.views.sample import ViewParams
from stepclr.views.views import Views

Json = dict[str, Any]
GRID, ROWS, PAIRS = 24, 6, 2  # images of the sample; images with their views, and pairs of these
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
SHOWN = 4  # images at each strength
OPTIONAL = {ColorJitter: "color jitter", Grayscale: "gray", Warp: "sparse image warp", Blur: "Gaussian blur"}
NAMES = ("brightness", "contrast", "saturation", "hue")
KEYS = 64  # looked through for one whose crop is telling


def data(made: Material) -> Json:
    """Step 1: counts, classes, sizes, a sample, what was skipped."""
    images, config = made.images, made.config
    found: Json = {
        "source": config["source"],
        "count": config["images"],
        "labelled": config.get("labelled"),
        "skipped": made.skipped[:10],
        "skipped_count": max(len(made.skipped), config.get("skipped", 0)),
        "why": made.why,
    }
    if images is None:
        return found
    some = images.take(spread(len(images), GRID))
    pixels, kept = some.read_readable(range(len(some)))
    sides = images.sizes()
    sides = sides[sides.min(1) > 0]
    if images.classes and (images.labels >= 0).any():
        counts = np.bincount(images.labels[images.labels >= 0], minlength=len(images.classes))
        found["balance"] = bars("Class balance", images.classes, counts.tolist(), "images")
    height, width = np.median(sides, axis=0)
    return found | {
        "sizes": f"from {_size(sides[sides.prod(1).argmin()])} to {_size(sides[sides.prod(1).argmax()])}, "
        f"in the middle {width:.0f} x {height:.0f}",
        "grid": [
            {"src": thumbnail_uri(image), "name": some.names[i], "label": _label(some, int(i))}
            for image, i in zip(pixels, kept, strict=True)
        ],
    }


def views(made: Material) -> Json:
    """Step 2: images with their views, one taken through each op, a slider of the strength."""
    if made.images is None:
        return {"why": made.why}
    how = made.views
    images = _readable(made, ROWS)
    rows = []
    drawn = [how(images, view_keys(made.settings.seed, epoch, range(len(images)))) for epoch in range(PAIRS)]
    parameters = [
        how.sample_params(images, view_keys(made.settings.seed, epoch, range(len(images)))) for epoch in range(PAIRS)
    ]
    for k, image in enumerate(images):
        cells = [
            {"src": thumbnail_uri(drawn[epoch][v, k]), "words": _words(parameters[epoch][v], k)}
            for epoch in range(PAIRS)
            for v in range(how.views)
        ]
        rows.append({"src": thumbnail_uri(image), "cells": cells})
    return {
        "describe": how.describe(),
        "rows": rows,
        "ops": _one_at_a_time(made, images[0]),
        "strengths": _strengths(made, images[:SHOWN]),
        "strength": how.strength if isinstance(how.strength, float | int) else None,
    }


def _readable(made: Material, count: int) -> list[Tensor]:
    some = made.some.take(spread(len(made.some), count))
    return list(some.read_readable(range(len(some)))[0])


def _one_at_a_time(made: Material, image: Tensor) -> list[Json]:
    """The image cropped and flipped as drawn, then each op by itself on that; those the policy lacks say so."""
    how = made.views
    own: dict[type, Any] = {type(op): op for op in how.ops[0]}
    ops = [(name, replace(own.get(kind, kind()), p=1.0), kind) for kind, name in OPTIONAL.items()]
    ops += [(kind.__name__, op, kind) for kind, op in own.items() if kind not in OPTIONAL]
    shown = Views([op for _, op, _ in ops], how.size, min_area=how.min_area, views=1, renderer="torch")
    keys = view_keys(made.settings.seed, 0, range(KEYS))
    boxes = shown.sample_params([image] * KEYS, keys)[0]
    # Of a few keys the one that flips, with a crop of about half the image: so that both are seen.
    area = boxes.box[:, 2] * boxes.box[:, 3] / (image.shape[1] * image.shape[2])
    key = int(np.argmin(np.abs(area - 0.5) + ~boxes.flip))
    draws = shown.sample_params([image], keys[key : key + 1])[0]
    crop = crop_resize_flip([image], draws.box, np.zeros(1, bool), how.size, how.interpolation)
    view = crop_resize_flip([image], draws.box, draws.flip, how.size, how.interpolation)
    top, left, height, width = draws.box[0].tolist()
    where = f"{width} x {height} px from ({left}, {top}), {area[key]:.0%} of the area, to {how.size} px"
    cards = [
        _card("image", image, _size(image.shape[1:])),
        _card("crop, resized", crop[0], where),
        _card("flip", view[0], "mirrored" if draws.flip[0] else "not mirrored", "with probability 0.5"),
    ]
    for (name, _, kind), drawn in zip(ops, draws.ops, strict=True):
        x = view.clone()
        apply_op(x, drawn)
        p = getattr(own[kind], "p", None) if kind in own else 0
        note = "" if p is None else f"with probability {p:g}" if p else "not in this run's policy"
        cards.append(_card(name, x[0], _drawn(drawn, 0) or "nothing drawn", note))
    return cards


def _card(name: str, image: Tensor, words: str, note: str = "") -> Json:
    return {"name": name, "src": thumbnail_uri(image), "words": words, "note": note}


def _strengths(made: Material, images: list[Tensor]) -> list[Json]:
    """The same draws at several strengths of the color jitter; none where the policy has no jitter."""
    how, settings = made.views, made.settings
    if how.strength is None:
        return []
    found = []
    keys = view_keys(settings.seed, 0, range(len(images)))
    for strength in STRENGTHS:
        one = Views(
            [replace(op, strength=strength, p=1.0) if isinstance(op, ColorJitter) else op for op in how.ops[0]],
            how.size,
            min_area=how.min_area,
            views=2,
            renderer="torch",
        )
        found.append({"strength": strength, "cells": [thumbnail_uri(view) for view in one(images, keys).flatten(0, 1)]})
    return found


def _words(draws: ViewParams, k: int) -> str:
    """What was drawn for image k, in words."""
    top, left, height, width = draws.box[k].tolist()
    words = [f"crop {width} x {height} at ({left}, {top})"] + (["flip"] if draws.flip[k] else [])
    return "; ".join([*words, *filter(None, (_drawn(one, k) for one in draws.ops))])


def _drawn(one: OpParams, k: int) -> str:
    match one:
        case JitterParams() if one.jitter[k]:
            told = [f"{NAMES[op]} {one.factors[k, op]:{'+.2f' if op == 3 else '.2f'}}" for op in one.order[k]]
            return ", ".join(told)
        case GrayscaleParams() if one.gray[k]:
            return "gray"
        case BlurParams() if one.sigma[k] > 0:
            return f"blur, sigma {one.sigma[k]:.2f} px"
        case WarpParams() if one.warp[k]:
            moves = np.linalg.norm(one.knots[k] - CONTROL_POINTS, axis=1)
            return f"warp, control points moved by up to {moves.max():.0%} of the side"
        case TableParams():
            return ", ".join(f"{OPS[op]} {m:.3g}" for op, m in zip(one.op[k], one.magnitude[k], strict=True) if op)
    return ""


def _label(images: Any, i: int) -> str:
    return images.class_name(i) or ""


def _size(side: Any) -> str:
    height, width = (int(s) for s in side)
    return f"{width} x {height}"
