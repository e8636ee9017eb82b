"""Step 8 on a page: a map of the embeddings, neighbors, outliers, near-duplicates, the lines that load the encoder."""

from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepclr.data.details import gray_thumbnail
from stepclr.data.images import ImageSet
from stepclr.data.order import spread
from stepclr.metrics import nearest
from stepclr.tools.curate.duplicates import duplicate_pairs
from stepclr.tools.curate.outliers import outlier_scores, pixel_statistics
from stepclr.tools.images import thumbnail_uri
from stepclr.tools.report.context import Context
from stepclr.tools.report.plots import Plot, points
from stepclr.tools.scores import loading_snippet

Json = dict[str, Any]
QUERIES, NEIGHBORS = 6, 6
OUTLIERS, DUPLICATES = 8, 8
THUMBNAIL_PX = 64


def usage(context: Context) -> Json:
    """What the encoder makes of images of the source."""
    section: Json = {"snippet": loading_snippet(context.run), "run": str(context.run.folder), "why": context.why}
    if context.images is None or len(context.sample) < 3:
        return section
    h, indices = context.embedded
    sample = context.sample.take(indices)
    images = list(sample.read(range(len(sample))))
    thumbnails = [thumbnail_uri(image, THUMBNAIL_PX) for image in images]

    def card(i: int, value: float | None = None) -> Json:
        return {"src": thumbnails[i], "name": sample.names[i], "value": value}

    unit, queries = F.normalize(h), spread(len(h), QUERIES)
    nearby = nearest(unit[queries], unit, 1 + min(NEIGHBORS, len(h) - 1))
    neighbors = []
    for query, cosines, others in zip(queries.tolist(), *(part.tolist() for part in nearby), strict=True):
        hits = [card(j, cosine) for cosine, j in zip(cosines, others, strict=True) if j != query]
        neighbors.append({"query": card(query), "hits": hits[:NEIGHBORS]})
    pairs, scores = duplicate_pairs(h.numpy(), torch.stack([gray_thumbnail(image) for image in images]))
    shown = zip(pairs[:DUPLICATES].tolist(), scores[:DUPLICATES].tolist(), strict=True)
    outliers = outlier_scores(h.numpy(), pixel_statistics(images))
    return section | {
        "shown": len(sample),
        "count": len(context.images),
        "maps": _maps(unit, sample, thumbnails),
        "neighbors": neighbors,
        "odd": [card(i, float(outliers[i])) for i in np.argsort(-outliers, kind="stable")[:OUTLIERS].tolist()],
        "twice": [{"pair": [card(i), card(j)], "alike": score} for (i, j), score in shown],
        "twice_count": len(pairs),
    }


def _maps(h: Float[Tensor, "n f"], sample: ImageSet, thumbnails: list[str]) -> list[Plot]:
    """The images in two dimensions, by principal components and, where it is installed, by UMAP."""
    captions = []
    for i, name in enumerate(sample.names):
        label = sample.class_name(i)
        captions.append(name if label is None else f"{name} ({label})")

    def plot(title: str, words: str, places: Float[np.ndarray, "n 2"]) -> Plot:
        return points(title, words, places, sample.labels, sample.classes, thumbnails, captions)

    centered = (h - h.mean(0)).double()
    u, singular, _ = torch.linalg.svd(centered, full_matrices=False)
    share = (singular[:2].square().sum() / singular.square().sum()).item()
    words = f"{len(h)} images on the two directions in which h varies most; they hold {share:.0%} of its variance."
    maps = [plot("PCA of h", words, (u[:, :2] * singular[:2]).numpy())]
    with suppress(ImportError):
        from umap import UMAP

        places = UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(h.numpy())
        words = "UMAP: near neighbors of h lie near each other; large distances mean little."
        maps.append(plot("UMAP of h", words, places))
    return maps
