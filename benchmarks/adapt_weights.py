"""Settings to adapt weights, on training images of CIFAR-10 alone: the weights as they are, and after short runs.

    python benchmarks/adapt_weights.py cifar10/train --batchnorm frozen --lr 0.0075 --epochs 6

adapts EfficientNet-Lite0 to 1,000 of the images, and scores it on 3,000 others: 10 labels per class of 2,000, tested on
1,000. With --epochs 0, it scores the weights as they are. timm must find them (timm:tf_efficientnet_lite0.in1k).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import stepclr
from stepclr.model.build import build_encoder
from stepclr.model.files import save_encoder

WEIGHTS = "timm:tf_efficientnet_lite0.in1k"
SIZE = 48  # pixels
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("--batchnorm", choices=["batch", "frozen"], default="frozen")
    parser.add_argument("--lr", type=float, default=0.0075)
    parser.add_argument("--epochs", type=int, default=6)
    asked = parser.parse_args()
    torch.set_num_threads(1)

    images = stepclr.open_images(asked.train)
    order = np.random.default_rng(0).permutation(len(images))
    adapting, labeled, held_out = (
        images.take(np.sort(part)) for part in (order[:1000], order[2000:4000], order[4000:5000])
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        if asked.epochs:
            settings = {name: getattr(asked, name) for name in ("batchnorm", "lr", "epochs")}
            stepclr.pretrain(
                adapting,
                run,
                weights=WEIGHTS,
                size=SIZE,
                batch_size=BATCH,
                precision="fp32",
                progress=False,
                **settings,
            )
        else:
            run = run.with_suffix(".safetensors")
            save_encoder(build_encoder("tf_efficientnet_lite0", weights=WEIGHTS, size=SIZE), run)
        scores = stepclr.evaluate(run, labeled, held_out, labels_per_class=10, draws=5, baselines=())
    for row in scores.rows:
        print(f"{row.method}, {row.labels_per_class} labels per class: {row.mean:.1%} {row.values}")


if __name__ == "__main__":
    main()
