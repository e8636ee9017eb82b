"""Step 5 on a page: the similarities in a real batch, the loss of one anchor in numbers, likely false negatives."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepclr.data.images import ImageSet
from stepclr.data.order import spread
from stepclr.errors import StepclrError
from stepclr.loss.contrastive import contrastive, own_class
from stepclr.loss.objectives import OBJECTIVES
from stepclr.loss.reference import anchor_losses, positives
from stepclr.metrics import whole_percent
from stepclr.pretraining.model import SimCLR
from stepclr.tools.images import page_uri
from stepclr.tools.report.context import Context
from stepclr.tools.report.plots import similarities
from stepclr.views.keys import view_keys

Json = dict[str, Any]
BATCH = 32  # images
VIEW_PX = 112  # long side of a view of the batch on the page
HARDEST, SUSPECTS = 6, 6  # negatives and pairs to show
VERY_ALIKE = 0.9  # cosine of h from which two images probably show the same kind of thing


def contrast(context: Context) -> Json:
    """One batch of views before and after training, through encoder and head, with BatchNorm as in training."""
    if context.images is None or not context.contrastive:
        return {"why": context.why or f"the loss of this run ({context.config.loss}) does not contrast projections"}
    try:
        models = {"after": context.trained}
    except StepclrError as error:
        return {"why": str(error)}
    no_start = ""
    try:
        models = {"before": context.untrained} | models
    except StepclrError:
        no_start = f"Not shown before training: the weights it began with, {context.config.weights}, are not at hand."
    batch = context.sample.take(spread(len(context.sample), BATCH))
    images, indices = batch.read_readable(range(len(batch)))
    batch = batch.take(indices)
    views = context.views(images, view_keys(context.config.seed, 0, range(len(images))))[:2]
    x = views.transpose(0, 1).flatten(0, 1)  # an image's two views are neighbors: [2N, 3, S, S]
    names = [f"{name}, view {view}" for name in batch.names for view in (1, 2)]
    thumbnails = [page_uri(view, VIEW_PX) for view in x]

    # Projections of one group are positives of each other: the views of an image, or of a class.
    labels = torch.from_numpy(batch.labels)
    groups = torch.arange(len(labels))
    if context.by_label:
        groups = own_class(labels, groups)
    groups = groups.repeat_interleave(2)
    temperature = context.config.temperature
    with_positives = OBJECTIVES[context.config.loss].positives_in_denominator
    losses, matrices = {}, []
    for when, model in models.items():
        z = _projections(model, x)
        loss = contrastive(z, groups, temperature, positives_in_denominator=with_positives)
        losses[when] = float(loss)
        title = f"{when.capitalize()} training"
        words = _matrix_words(title, z, groups)
        matrices.append(similarities(title, words, (z @ z.T).numpy()))
    return {
        "images": len(images),
        "negatives": len(x) - 2,
        "temperature": temperature,
        "losses": losses,
        "no_start": no_start,
        # With the images of a class as positives, no guess but one point costs this: they are far apart at first.
        "chance": None if context.by_label else math.log(len(x) - 1 if with_positives else len(x) - 2),
        "matrices": matrices,
        "batch": {"images": thumbnails, "captions": names},
        "anchor": _one_anchor(z, groups, temperature, with_positives, thumbnails, names),
        "suspects": _suspects(context, batch, list(images)),
    }


def _projections(model: SimCLR, x: Float[Tensor, "m c s s"]) -> Float[Tensor, "m d"]:
    """Unit-norm z, by a copy of the model: its running statistics stay unchanged."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        z = model.head(model.encoder(x.to(next(model.parameters()).device)))
    return F.normalize(z.float()).cpu()


def _one_anchor(
    z: Tensor, groups: Tensor, temperature: float, with_positives: bool, thumbnails: list[str], names: list[str]
) -> Json:
    """The loss of the anchor whose loss is the median, with its hardest negatives.

    with_positives: whether the loss's sum over the others includes the positives.
    """
    losses = anchor_losses(z, groups, temperature, with_positives)
    anchor = int(losses.argsort()[len(z) // 2])
    cosine = z @ z[anchor]
    others = torch.arange(len(z)) != anchor
    positive = (groups == groups[anchor]) & others
    summed = others if with_positives else others & ~positive
    log_sum = (cosine[summed] / temperature).logsumexp(0)
    share = (cosine / temperature - log_sum).exp()
    negatives = torch.where(~positive & others)[0]
    hardest = negatives[cosine[negatives].argsort(descending=True)][:HARDEST]
    ranked = [
        {
            "src": thumbnails[k],
            "name": names[k],
            "positive": bool(positive[k]),
            "cosine": float(cosine[k]),
            "share": float(share[k]) if summed[k] else None,
        }
        for k in [*torch.where(positive)[0].tolist()[:1], *hardest.tolist()]
    ]
    return {
        "src": thumbnails[anchor],
        "name": names[anchor],
        "positives": int(positive.sum()),
        "cosine": float(cosine[positive].mean()),
        "logit": float(cosine[positive].mean() / temperature),
        "log_sum": float(log_sum),
        "summed": int(summed.sum()),
        "summed_words": "others" if with_positives else "negatives",
        "loss": float(losses[anchor]),
        "mean": float(losses.mean()),
        "ranked": ranked,
    }


def _suspects(context: Context, batch: ImageSet, images: list[Tensor]) -> list[Json]:
    """The pairs that the trained encoder finds most alike and that the loss pushes apart, perhaps wrongly."""
    with torch.inference_mode():
        h = F.normalize(context.encoder.eval()(context.encoder.preprocess(images)).float().cpu())
    cosine = (h @ h.T).triu(1)
    suspects = []
    for place in cosine.flatten().argsort(descending=True)[:SUSPECTS].tolist():
        i, j = divmod(place, len(h))
        labels = batch.class_name(i), batch.class_name(j)
        same = None not in labels and labels[0] == labels[1]
        if i >= j or (context.by_label and same):  # a positive pair is not pushed apart
            continue
        words = "same label" if same else "different labels"
        if None in labels:
            words = "very alike" if cosine[i, j] >= VERY_ALIKE else "label unknown"
        pair = [page_uri(images[k]) for k in (i, j)]
        names = [batch.names[i], batch.names[j]]
        suspects.append({"pair": pair, "names": names, "cosine": float(cosine[i, j]), "word": words})
    return suspects


def _matrix_words(title: str, z: Float[Tensor, "m d"], groups: Tensor) -> str:
    cosine = z @ z.T
    positive, itself = positives(groups), torch.eye(len(z), dtype=torch.bool)
    negative = cosine[~positive & ~itself]
    nearest = cosine.masked_fill(itself, -2).argmax(1)
    right = positive[torch.arange(len(z)), nearest].float().mean()
    return (
        f"{title}, {len(z)} x {len(z)} cosines: positive pairs {cosine[positive].mean():.2f} on "
        f"average, negatives {negative.mean():.2f}; {whole_percent(right)} of the anchors are nearest to a positive."
    )
