"""Steps 1 and 2 on a page: the images, and what the views do to them."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from stepclr.data.labels import class_counts
from stepclr.data.order import spread
from stepclr.data.reading import RGB
from stepclr.metrics import whole_percent
from stepclr.tools.images import page_uri
from stepclr.tools.report.context import Context
from stepclr.tools.report.plots import Bar
from stepclr.views import geometry, ops
from stepclr.views.autoaugment import OPS
from stepclr.views.color import ChannelJitter, ChannelJitterParams
from stepclr.views.keys import view_keys
from stepclr.views.reference import apply_op, crop_resize_flip
from stepclr.views.sample import ViewParams
from stepclr.views.views import Views

Json = dict[str, Any]
GRID, ROWS, PAIRS = 24, 5, 4  # images of the sample; images with their views, and pairs of views of each
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
STRENGTH_IMAGES = 4  # at each strength
OPTIONAL = {
    ops.ColorJitter: "color jitter",
    ops.Grayscale: "gray",
    ops.Warp: "sparse image warp",
    ops.Blur: "Gaussian blur",
}
JITTERS = ("brightness", "contrast", "saturation", "hue")
EXAMPLES = 10  # of what was left out
KEYS = 64  # to choose a clear crop from


def data(context: Context) -> Json:
    """Step 1: counts, classes, sizes, a sample, what was skipped, ignored or changed."""
    images, config = context.images, context.config
    section: Json = {
        "source": config.source_text,
        "count": config.images,
        "labeled": config.labeled,
        "left_out": _left_out(context),
        "why": context.why,
    }
    if images is None:
        return section
    counts = class_counts(images)
    if any(counts.values()):
        most = max(counts.values())
        ordered = sorted(zip(images.classes, counts.values(), strict=True), key=lambda row: -row[1])
        section["balance"] = [Bar(name, count / most, f"{count:,}") for name, count in ordered]
    sizes = images.sizes()
    sizes = sizes[sizes.min(1) > 0]  # 0 stands for an image that cannot be read
    areas = sizes.prod(1)
    height, width = np.median(sizes, axis=0)
    smallest, largest = _size(sizes[areas.argmin()]), _size(sizes[areas.argmax()])
    section["sizes"] = f"all {smallest}"
    if smallest != largest:
        section["sizes"] = f"from {smallest} to {largest}, median {width:.0f} x {height:.0f}"
    sample = images.take(spread(len(images), GRID))
    pixels, indices = sample.read_readable(range(len(sample)))
    sample = sample.take(indices)
    section["grid"] = [
        {"src": page_uri(image), "name": sample.names[i], "label": sample.class_name(i) or ""}
        for i, image in enumerate(pixels)
    ]
    return section


def views(context: Context) -> Json:
    """Step 2: images with their views, one image taken through each op, and a range of strengths."""
    if context.images is None:
        return {"why": context.why}
    run_views = context.views
    sample = context.sample.take(spread(len(context.sample), ROWS))
    images = list(sample.read_readable(range(len(sample)))[0])
    rows: list[Json] = [{"src": page_uri(image), "cells": []} for image in images]
    for epoch in range(PAIRS):
        keys = view_keys(context.config.seed, epoch, range(len(images)))
        for view, params in zip(run_views(images, keys), run_views.sample_params(images, keys), strict=True):
            for k, row in enumerate(rows):
                row["cells"].append({"src": page_uri(view[k]), "words": _view_words(params, k)})
    return {
        "describe": run_views.describe(),
        "rows": rows,
        "ops": _one_at_a_time(context, images[0]),
        "strengths": _strengths(context, images[:STRENGTH_IMAGES]),
        "strength": run_views.strength if isinstance(run_views.strength, float | int) else None,
    }


def _left_out(context: Context) -> list[Json]:
    """Counts and examples of what was skipped, ignored or changed under the source."""
    groups = context.left_out
    skipped = max(len(groups["skipped"]), context.config.skipped)
    titles = {
        "skipped": f"{skipped:,} images could not be read",
        "ignored": f"{len(groups['ignored']):,} files and folders were ignored",
        "changed": f"{len(groups['changed']):,} images were changed when they were read",
    }
    counts = {name: len(rows) for name, rows in groups.items()} | {"skipped": skipped}
    return [
        {"title": title, "rows": groups[name][:EXAMPLES], "more": counts[name] > EXAMPLES}
        for name, title in titles.items()
        if counts[name]
    ]


def _one_at_a_time(context: Context, image: Tensor) -> list[Json]:
    """The image cropped and flipped, then that with each op alone; ops that the policy lacks are marked."""
    run_views = context.views
    own: dict[type, Any] = {type(op): op for op in run_views.ops[0]}
    single_ops = {name: replace(own.get(kind, kind()), p=1.0) for kind, name in OPTIONAL.items()}
    for kind, op in own.items():
        if kind not in OPTIONAL:
            single_ops[kind.__name__] = replace(op, p=1.0) if hasattr(op, "p") else op
    size, min_area, channels = run_views.size, run_views.min_area, run_views.channels
    if channels != RGB:  # colors do not change
        del single_ops[OPTIONAL[ops.ColorJitter]], single_ops[OPTIONAL[ops.Grayscale]]

    def views_with(*alone: Any) -> Views:
        """Views with these ops; the crop and the flip of a key are the same with any."""
        return Views(alone, size, min_area=min_area, views=1, renderer="torch", channels=channels)

    # Of several keys the one that flips and crops about half the image, so that both can be seen.
    keys = view_keys(context.config.seed, 0, range(KEYS))
    candidates = views_with().sample_params([image] * KEYS, keys)[0]
    area = candidates.box[:, 2] * candidates.box[:, 3] / (image.shape[1] * image.shape[2])
    key = int(np.argmin(np.abs(area - 0.5) + ~candidates.flip))
    params = views_with().sample_params([image], keys[key : key + 1])[0]
    crop = crop_resize_flip([image], params.box, np.zeros(1, bool), size, run_views.interpolation)
    view = crop_resize_flip([image], params.box, params.flip, size, run_views.interpolation)
    top, left, height, width = params.box[0].tolist()
    cards = [
        _card("image", image, _size(image.shape[1:])),
        _card(
            "crop, resized",
            crop[0],
            f"{width} x {height} px from ({left}, {top}), {whole_percent(area[key])} of the area, to {size} px",
        ),
        _card("flip", view[0], "mirrored" if params.flip[0] else "not mirrored", _probability(run_views.flip)),
    ]
    for name, op in single_ops.items():
        (op_params,) = views_with(op).sample_params([image], keys[key : key + 1])[0].ops
        x = view.clone()
        apply_op(x, op_params)
        p = getattr(own[type(op)], "p", None) if type(op) in own else 0.0
        cards.append(_card(name, x[0], _op_words(op_params, 0) or "no change drawn", _probability(p)))
    return cards


def _probability(p: float | None) -> str:
    if p == 0:
        return "not in this run's policy"
    return "" if p is None else f"with probability {p:g}"


def _card(name: str, image: Tensor, words: str, note: str = "") -> Json:
    return {"name": name, "src": page_uri(image), "words": words, "note": note}


def _strengths(context: Context, images: list[Tensor]) -> list[Json]:
    """The same random draws at several strengths of the color jitter; none where the policy has no jitter."""
    run_views = context.views
    if run_views.strength is None:
        return []
    keys = view_keys(context.config.seed, 0, range(len(images)))
    strengths = []
    for strength in STRENGTHS:
        strong_ops = []
        for op in run_views.ops[0]:
            if isinstance(op, ops.ColorJitter | ChannelJitter):
                op = replace(op, strength=strength, p=1.0)
            strong_ops.append(op)
        size, channels = run_views.size, run_views.channels
        strong = Views(strong_ops, size, min_area=run_views.min_area, views=2, renderer="torch", channels=channels)
        cells = [page_uri(view) for view in strong(images, keys).flatten(0, 1)]
        strengths.append({"strength": strength, "cells": cells})
    return strengths


def _view_words(params: ViewParams, k: int) -> str:
    """The random parameters of the view of image k, in words."""
    top, left, height, width = params.box[k].tolist()
    words = [f"crop {width} x {height} at ({left}, {top})", "flip" if params.flip[k] else ""]
    words += [_op_words(op_params, k) for op_params in params.ops]
    return "; ".join(filter(None, words))


def _op_words(params: ops.OpParams, k: int) -> str:
    match params:
        case ops.JitterParams() if params.jitter[k]:
            factors = zip(JITTERS, ("", "", "", "+"), params.factors[k], strict=True)
            words = [f"{name} {factor:{sign}.2f}" for name, sign, factor in factors]
            return ", ".join(words[op] for op in params.order[k])
        case ChannelJitterParams() if params.jitter[k]:
            brightness, contrast = (" / ".join(f"{one:.2f}" for one in each) for each in params.factors[k].T)
            return f"brightness {brightness}, contrast {contrast}"
        case ops.GrayscaleParams() if params.gray[k]:
            return "gray"
        case ops.BlurParams() if params.sigma[k] > 0:
            return f"blur, sigma {params.sigma[k]:.2f} px"
        case ops.WarpParams() if params.warp[k]:
            moves = np.linalg.norm(params.knots[k] - ops.CONTROL_POINTS, axis=1)
            return f"warp, control points moved by up to {whole_percent(moves.max())} of the side"
        case ops.TableParams():
            applied = zip(params.op[k], params.magnitude[k], strict=True)
            return ", ".join(f"{OPS[op]} {magnitude:.3g}" for op, magnitude in applied if op)
        case ops.LevelParams() if params.op[k]:
            return OPS[params.op[k]].lower()
        case geometry.TurnParams() if params.turn[k] == geometry.UPSIDE_DOWN:
            return "upside down"
        case geometry.TurnParams() if params.turn[k]:
            return f"turned by {90 * params.turn[k]} degrees"
        case geometry.RotateParams() if params.rotate[k]:
            cosine, sine = params.direction[k]
            return f"rotated by {math.degrees(math.atan2(sine, cosine)):.0f} degrees"
        case geometry.EraseParams() if params.erase[k]:
            top, left, height, width = params.box[k].tolist()
            return f"{width} x {height} px erased at ({left}, {top})"
    return ""


def _size(side: Any) -> str:
    height, width = (int(length) for length in side)
    return f"{width} x {height}"
