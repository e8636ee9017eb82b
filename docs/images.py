"""Make the images of the site from the bundled images: `python docs/images.py [FOLDER [RUN]]` takes a few minutes.

All except views.png and ops.png show one run of `--recipe sample` (seed 0), which `make demo` trains too: RUN, or a new
one.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from drawing import Shown, drawn
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import Tensor

import stepclr
from stepclr.evaluation.init_from import trained_head
from stepclr.evaluation.results import Scores
from stepclr.pretraining.resolve import resolve, views_of
from stepclr.recipes import recipe_config
from stepclr.tools.label_chart import label_chart
from stepclr.tools.methods import COLORS
from stepclr.tools.sheet import policy_sheet, sheet
from stepclr.views.views import Views

LARGER = 3  # an image of 28 pixels is shown at three times its size, with hard edges
BLUE, ORANGE = COLORS[:2]  # of the report: alike, and opposite
ALIKE = LinearSegmentedColormap.from_list("alike", [ORANGE, "#ffffff", BLUE])


def main(folder: Path, trained: Path | None = None) -> None:
    """Write everything into `folder`; trained: such a run, where there is one."""
    folder.mkdir(exist_ok=True)
    views().save(folder / "views.png")
    ops().save(folder / "ops.png")
    config = recipe_config("sample")
    test = stepclr.open_images("sample:test")
    ten = one_of_each(test)
    with tempfile.TemporaryDirectory(prefix="stepclr-docs-") as place:
        run = stepclr.Run(Path(place) / "run")
        if trained:
            run = stepclr.Run(Path(shutil.copytree(trained, run.folder)))
        else:
            stepclr.pretrain("sample:unlabeled", run.folder, config=config, monitor="sample:train")
        pair = views_of(resolve(config, test))(ten.read(range(10)), stepclr.view_keys(0, 0, range(10)))
        torch.manual_seed(0)
        fresh = stepclr.build_encoder(str(config.encoder), config.stem, size=28)
        _save(similarity(_projections(fresh, pair), _projections(run.encoder(), pair, run)), folder / "similarity.png")
        _save(training(run.metrics), folder / "training.png")
        scores = stepclr.evaluate(run, "sample:train", test, labels_per_class="1,3,10,30", draws=5)
        _save(label_chart(scores), folder / "labels.png")
        h = torch.from_numpy(stepclr.embed(run, test))
        _larger(neighbors(test, h, [1, 3, 5, 7, 8])).save(folder / "neighbors.png")
        shown = eight_steps(run, scores, test, pair, h)
    for name, columns in (("steps", 8), ("steps-narrow", 2)):
        (folder / f"{name}.svg").write_text(drawn(shown, columns))


def views() -> Image.Image:
    """Five images with four pairs of views each, with the settings of the recipe."""
    ten = one_of_each(stepclr.open_images("sample:test"))
    pairs = views_of(resolve(recipe_config("sample"), ten), "torch")  # the reference
    return _larger(sheet(ten.read(range(0, 10, 2)), pairs, seed=0, pairs=4))


def ops() -> Image.Image:
    """Three images, and a view of each with every op that turns, erases or changes levels."""
    words = (
        "VerticalFlip(1)", "QuarterTurns(1)", "Rotate(45,1)", "Solarize(p=1)", "Posterize(2,1)", "Equalize(1)",
        "RandomErasing(p=1)",
    )  # fmt: skip
    images = one_of_each(stepclr.open_images("sample:test")).read([1, 5, 9])
    whole = [Views(op, 28, min_area=1.0, renderer="torch") for op in words]
    return policy_sheet(images, whole, seed=103)  # none of the three is mirrored or turned upside down


def one_of_each(images: stepclr.ImageSet) -> stepclr.ImageSet:
    """The first image of each class."""
    return images.take([int(np.flatnonzero(images.labels == label)[0]) for label in range(len(images.classes))])


def similarity(before: Tensor, after: Tensor) -> Figure:
    """Cosines between the projections of ten images: the first views, then the second ones."""
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, z, name in zip(axes, (before, after), ("before pretraining", "after"), strict=True):
        z = F.normalize(z)
        drawn = ax.imshow(z @ z.T, vmin=-1, vmax=1, cmap=ALIKE)
        ax.set_xticks([4.5, 14.5], ["z_i", "z_j"])
        ax.set_yticks([4.5, 14.5], ["z_i", "z_j"])
        ax.set_title(name)
    figure.colorbar(drawn, ax=axes, label="cosine")
    return figure


def training(metrics: Sequence[dict[str, Any]]) -> Figure:
    """metrics.jsonl as three curves."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    named = {"loss": "NT-Xent", "contrastive_top1": "contrastive top-1", "knn": "weighted kNN top-1"}
    for ax, (key, name) in zip(figure.subplots(1, 3), named.items(), strict=True):
        logged = [line for line in metrics if key in line]
        ax.plot([line["step"] for line in logged], [line[key] for line in logged], color=BLUE)
        ax.set_title(name)
        if key != "loss":
            ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %", decimals=0))
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)
    return figure


def neighbors(images: stepclr.ImageSet, h: Tensor, queries: Sequence[int], count: int = 8) -> Image.Image:
    """One row per query: the first image of that class, a gap, and the images with the nearest h."""
    h = F.normalize(h)
    rows = []
    for label in queries:
        first = int(np.flatnonzero(images.labels == label)[0])
        order = (h @ h[first]).argsort(descending=True)[: count + 1]
        row = images.read(order)
        assert isinstance(row, Tensor)
        gap = torch.full_like(row[0][:, :, :8], 255)
        rows.append(torch.cat([row[0], gap, *row[1:]], 2))
    return Image.fromarray(torch.cat(rows, 1).permute(1, 2, 0).numpy())


def eight_steps(
    run: stepclr.Run, scores: Scores, images: stepclr.ImageSet, pair: Tensor, h: Tensor, labels_per_class: int = 10
) -> Shown:
    """What the drawing of the eight steps shows of this run; `pair` are two views of the first image of each class."""
    unlabeled = stepclr.open_images("sample:unlabeled", limit=9)
    ten = one_of_each(images)
    views = (pair[:, 8] * 255).round().to(torch.uint8)  # of a bag
    three = F.normalize(_projections(run.encoder(), pair[:, [1, 7, 8]], run))
    of_method = {row.method: row.mean for row in scores.rows if row.labels_per_class == labels_per_class}
    names = {"random": "untrained", "pixels": "pixels", "simclr": "SimCLR"}
    order = (F.normalize(h) @ F.normalize(h)[int(np.flatnonzero(images.labels == 7)[0])]).argsort(descending=True)
    return Shown(
        images=torch.stack([*unlabeled.read(range(9))]),
        views=torch.stack([*ten.read([8]), *views]),
        cosines=three @ three.T,
        losses=[line["loss"] for line in run.metrics],
        scores=[(name, of_method[method]) for method, name in names.items()],
        neighbors=torch.stack([*images.read(order[:7])]),
    )


def _projections(encoder: stepclr.Encoder, pair: Tensor, run: stepclr.Run | None = None) -> Tensor:
    """z of both views, with a new head or the head of the run's last checkpoint."""
    torch.manual_seed(0)
    head = trained_head(run, encoder) if run else stepclr.ProjectionHead(encoder.num_features, 512, 128)
    with torch.no_grad():
        z: Tensor = head.train(run is None)(encoder.train(run is None)(pair.flatten(0, 1)))
    return z


def _larger(image: Image.Image) -> Image.Image:
    return image.resize((image.width * LARGER, image.height * LARGER), Image.Resampling.NEAREST)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})  # else the file depends on matplotlib's version


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    main(*given or [Path(__file__).parent / "images"])
