"""Step 8 on a page: a map of the embeddings, neighbors, outliers, near-duplicates, the lines that load the encoder."""

from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepclr.data.details import gray_thumbnail
from stepclr.data.order import spread
from stepclr.metrics import nearest, whole_percent
from stepclr.tools.curate.duplicates import duplicate_pairs
from stepclr.tools.curate.outliers import outlier_scores, pixel_statistics
from stepclr.tools.images import page_uri
from stepclr.tools.report.context import Context
from stepclr.tools.report.plots import Plot, points
from stepclr.tools.scores import loading_snippet

Json = dict[str, Any]
QUERIES, NEIGHBORS = 6, 8
CANDIDATES = 60  # to choose the queries from, so that each is of another class
OUTLIERS, DUPLICATES = 8, 8


def usage(context: Context) -> Json:
    """What the encoder makes of images of the source."""
    section: Json = {"why": context.no_encoder or context.why}
    if context.no_encoder:
        return section
    section["snippet"] = loading_snippet(context.run)
    if context.images is None or len(context.sample) < 3:
        return section
    h, sample = context.embedded

    def card(i: int, value: float | None = None) -> Json:
        name = sample.names[i]
        return {"src": page_uri(context.pixels[i]), "name": name, "label": sample.class_name(i), "value": value}

    unit, queries = F.normalize(h), _queries(context)
    nearby = nearest(unit[queries], unit, 1 + min(NEIGHBORS, len(h) - 1))
    neighbors = []
    for query, cosines, others in zip(queries, *(part.tolist() for part in nearby), strict=True):
        hits = [card(j, cosine) for cosine, j in zip(cosines, others, strict=True) if j != query]
        neighbors.append({"query": card(query), "hits": hits[:NEIGHBORS]})
    pairs, scores = duplicate_pairs(h.numpy(), torch.stack([gray_thumbnail(image) for image in context.pixels]))
    shown = zip(pairs[:DUPLICATES].tolist(), scores[:DUPLICATES].tolist(), strict=True)
    outliers = outlier_scores(h.numpy(), pixel_statistics(context.pixels))
    return section | {
        "shown": len(sample),
        "count": len(context.images),
        "maps": _maps(context, unit),
        "neighbors": neighbors,
        "odd": [card(i, float(outliers[i])) for i in np.argsort(-outliers, kind="stable")[:OUTLIERS].tolist()],
        "twice": [{"pair": [card(i), card(j)], "alike": score} for (i, j), score in shown],
        "twice_count": len(pairs),
    }


def _queries(context: Context) -> list[int]:
    """Images spread over the source, each of another class where classes are known; never by their neighbors."""
    labels = context.colored.labels
    candidates = spread(len(labels), CANDIDATES).tolist()
    first_of: dict[int, int] = {}
    for i in reversed(candidates):  # so that an earlier image of a class replaces a later one
        if labels[i] >= 0:
            first_of[int(labels[i])] = i
    chosen = list(reversed(first_of.values()))[:QUERIES]
    others = [i for i in spread(len(labels), QUERIES).tolist() if i not in chosen]
    return (chosen + others)[:QUERIES]


def _maps(context: Context, h: Float[Tensor, "n f"]) -> list[Plot]:
    """The images in two dimensions, by principal components and, where it is installed, by UMAP."""
    sample, colored = context.embedded[1], context.colored
    captions = []
    for i, name in enumerate(sample.names):
        label = colored.labels[i]
        captions.append(name if label < 0 else f"{name} ({colored.classes[label]})")

    def plot(title: str, words: str, places: Float[np.ndarray, "n 2"]) -> Plot:
        words = f"{words} {colored.words}"
        return points(title, words, places, colored.labels, colored.classes, context.pixels, captions)

    centered = (h - h.mean(0)).double()
    u, singular, _ = torch.linalg.svd(centered, full_matrices=False)
    share = (singular[:2].square().sum() / singular.square().sum()).item()
    held = whole_percent(share)
    words = f"{len(h):,} images on the two directions in which h varies most; they hold {held} of its variance."
    maps = [plot("Map of the images: PCA of h", words, (u[:, :2] * singular[:2]).numpy())]
    with suppress(ImportError):
        from umap import UMAP

        places = UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(h.numpy())
        words = "UMAP: near neighbors of h lie near each other; large distances mean little."
        maps.append(plot("Map of the images: UMAP of h", words, places))
    return maps
