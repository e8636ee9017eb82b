"""Step 5 on a page: the similarity matrix of a real batch, one anchor's loss in numbers, its hardest negatives."""

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepclr.errors import StepclrError
from stepclr.loss.contrastive import contrastive, own_class
from stepclr.loss.reference import anchor_losses, positives
from stepclr.pretraining.model import SimCLR
from stepclr.tools.images import thumbnail_uri
from stepclr.tools.report.context import Material
from stepclr.tools.report.plots import similarities
from stepclr.tools.spread import spread
from stepclr.views.keys import view_keys

Json = dict[str, Any]
BATCH = 32  # images of the batch that is shown
HARDEST, SUSPECTS = 6, 6
TWINS = 0.9  # cosine of h from which two images are likely of one kind: a false negative, whatever their labels


def contrast(made: Material) -> Json:
    """A batch of views before and after training, through encoder and head, BatchNorm as in a step of training."""
    if made.images is None or not made.contrastive:
        return {"why": made.why or f"the loss of this run, {made.settings.loss}, contrasts no projections"}
    try:
        before, after = made.untrained, made.trained
    except StepclrError as error:
        return {"why": str(error)}
    some = made.some.take(spread(len(made.some), BATCH))
    images, kept = some.read_readable(range(len(some)))
    views = made.views(images, view_keys(made.settings.seed, 0, range(len(images))))[:2]
    x = views.transpose(0, 1).flatten(0, 1)  # an image's two views are neighbors: [2N, 3, S, S]
    names = [f"{some.names[i]}, view {v}" for i in kept for v in (1, 2)]
    labels = torch.from_numpy(some.labels[kept])
    groups = torch.arange(len(kept)).repeat_interleave(2)
    if made.by_label:
        groups = own_class(labels, torch.arange(len(labels))).repeat_interleave(2)
    small = [thumbnail_uri(view, 64) for view in x]
    z = {"before": _projections(before, x), "after": _projections(after, x)}
    tau = made.settings.temperature
    losses = {when: float(contrastive(rows, groups, tau)) for when, rows in z.items()}
    return {
        "images": len(kept),
        "negatives": len(x) - 2,
        "temperature": tau,
        "losses": losses,
        "chance": math.log(len(x) - 1),
        "matrices": [
            similarities(
                f"{when.capitalize()} training",
                _matrix_words(when, rows, groups),
                (rows @ rows.T).numpy(),
                small,
                names,
            )
            for when, rows in z.items()
        ],
        "anchor": _worked_out(z["after"], groups, tau, small, names),
        "suspects": _suspects(made, some.take(kept), list(images), labels),
    }


def _projections(model: SimCLR, x: Float[Tensor, "m 3 s s"]) -> Float[Tensor, "m d"]:
    """Unit-norm z, of a copy: the model's running statistics stay as they are."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        z = model.head(model.encoder(x.to(next(model.parameters()).device)))
    return F.normalize(z.float()).cpu()


def _worked_out(z: Tensor, groups: Tensor, tau: float, images: list[str], names: list[str]) -> Json:
    """The anchor of median loss: neither the easiest nor the hardest."""
    losses = anchor_losses(z, groups, tau)
    anchor = int(losses.argsort()[len(z) // 2])
    cosine = z @ z[anchor]
    others = torch.arange(len(z)) != anchor
    positive = (groups == groups[anchor]) & others
    log_sum = (cosine[others] / tau).logsumexp(0)
    negatives = torch.where(~positive & others)[0]
    hardest = negatives[cosine[negatives].argsort(descending=True)][:HARDEST]
    share = ((cosine / tau) - log_sum).exp()
    ranked = [*torch.where(positive)[0].tolist()[:1], *hardest.tolist()]
    return {
        "src": images[anchor],
        "name": names[anchor],
        "positives": int(positive.sum()),
        "cosine": float(cosine[positive].mean()),
        "logit": float(cosine[positive].mean() / tau),
        "log_sum": float(log_sum),
        "others": int(others.sum()),
        "loss": float(losses[anchor]),
        "mean": float(losses.mean()),
        "ranked": [
            {
                "src": images[k],
                "name": names[k],
                "positive": bool(positive[k]),
                "cosine": float(cosine[k]),
                "share": float(share[k]),
            }
            for k in ranked
        ],
    }


def _suspects(made: Material, images: Any, pixels: list[Tensor], labels: Tensor) -> list[Json]:
    """Pairs of the batch that the trained encoder finds most alike: the loss pushes them apart, and perhaps wrongly."""
    x = made.encoder.preprocess(pixels)
    with torch.inference_mode():
        h = F.normalize(made.encoder.eval()(x).float().cpu())
    cosine = (h @ h.T).triu(1)
    order = cosine.flatten().argsort(descending=True)[:SUSPECTS]
    small = [thumbnail_uri(image, 64) for image in pixels]
    found = []
    for place in order.tolist():
        i, j = divmod(place, len(h))
        if i >= j:
            continue
        known = bool(labels[i] >= 0 and labels[j] >= 0)
        same = bool(labels[i] == labels[j])
        if made.by_label and known and same:
            continue  # a positive pair there
        word = ("the same label" if same else "other labels") if known else "no labels to tell"
        if not known and cosine[i, j] >= TWINS:
            word = "very alike"
        found.append(
            {
                "pair": [small[i], small[j]],
                "names": [images.names[i], images.names[j]],
                "cosine": float(cosine[i, j]),
                "word": word,
            }
        )
    return found


def _matrix_words(when: str, z: Float[Tensor, "m d"], groups: Tensor) -> str:
    cosine = z @ z.T
    positive, itself = positives(groups), torch.eye(len(z), dtype=torch.bool)
    away = cosine[~positive & ~itself]
    first = cosine.masked_fill(itself, -2).argmax(1)
    found = np.mean([bool(positive[i, j]) for i, j in enumerate(first.tolist())])
    return (
        f"{when.capitalize()} training, {len(z)} x {len(z)} cosines: positive pairs {cosine[positive].mean():.2f} on "
        f"average, negatives {away.mean():.2f}; {found:.0%} of the anchors are nearest to a positive."
    )
