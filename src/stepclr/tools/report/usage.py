"""Step 8 on a page: a map of the embeddings, neighbors, odd ones out, near-duplicates, the lines that load it."""

from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepclr.tools.curate.duplicates import duplicate_pairs
from stepclr.tools.curate.outliers import outlier_scores
from stepclr.tools.images import gray_thumbnail, thumbnail_uri
from stepclr.tools.report.context import Material
from stepclr.tools.report.plots import points
from stepclr.tools.scores import loading_snippet
from stepclr.tools.spread import spread

Json = dict[str, Any]
QUERIES, NEIGHBORS = 6, 6
ODD, TWICE = 8, 8


def usage(made: Material) -> Json:
    """What the encoder makes of images of the source."""
    found: Json = {"snippet": loading_snippet(made.run), "run": str(made.run.folder), "why": made.why}
    if made.images is None or len(made.some) < 3:
        return found
    h, kept = made.embedded
    some = made.some.take(kept)
    images = list(some.read(range(len(some))))
    small, names = [thumbnail_uri(image, 64) for image in images], [some.names[i] for i in range(len(some))]
    unit = F.normalize(h)

    def card(i: int, value: float | None = None) -> Json:
        return {"src": small[i], "name": names[i], "value": value}

    twice = duplicate_pairs(h.numpy(), torch.stack([gray_thumbnail(image) for image in images]))
    odd = outlier_scores(h.numpy())
    return found | {
        "shown": len(some),
        "count": len(made.images),
        "maps": _maps(made, unit, some.labels, small, names),
        "neighbors": [
            {"query": card(i), "hits": [card(j, cosine) for cosine, j in _nearest(unit, i)]}
            for i in spread(len(h), QUERIES).tolist()
        ],
        "odd": [card(i, float(odd[i])) for i in np.argsort(-odd, kind="stable")[:ODD].tolist()],
        "twice": [
            {"pair": [card(int(i)), card(int(j))], "alike": float(score)}
            for (i, j), score in zip(twice.indices[:TWICE], twice.scores[:TWICE], strict=True)
        ],
        "twice_count": len(twice.indices),
    }


def _nearest(unit: Float[Tensor, "n f"], query: int) -> list[tuple[float, int]]:
    """Cosines to, and rows of, the NEIGHBORS nearest others of a row."""
    cosine = unit @ unit[query]
    cosine[query] = -torch.inf
    values, rows = cosine.topk(min(NEIGHBORS, len(unit) - 1))
    return list(zip(values.tolist(), rows.tolist(), strict=True))


def _maps(
    made: Material, unit: Float[Tensor, "n f"], labels: np.ndarray, small: list[str], names: list[str]
) -> list[Any]:
    classes = made.images.classes if made.images is not None else []
    captions = [f"{name} ({classes[label]})" if label >= 0 else name for name, label in zip(names, labels, strict=True)]
    centerd = (unit - unit.mean(0)).double()
    u, singular, _ = torch.linalg.svd(centerd, full_matrices=False)
    share = (singular[:2].square().sum() / singular.square().sum()).item()
    at = (u[:, :2] * singular[:2]).numpy()
    words = f"{len(unit)} images on the two directions in which h differs most; they hold {share:.0%} of its variance."
    found = [points("PCA of h", words, at, labels, classes, small, captions)]
    with suppress(ImportError):
        from umap import UMAP

        placed = UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(unit.numpy())
        words = "UMAP: near neighbors of h lie near each other; far distances mean little."
        found.append(points("UMAP of h", words, placed, labels, classes, small, captions))
    return found
