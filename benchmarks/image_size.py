"""How large should whole images be for a trained encoder? kNN accuracy by their size; training is done already.

    python benchmarks/image_size.py RUN SOURCE --sizes 32,40,48 [--bank 20000] [--queries 5000] [--seed 0]

SOURCE has labels; a seeded draw of it is the bank of neighbors, and others of its images are the queries: a size can be
chosen without the images of a test set. Weighted kNN, k = 20, T = 0.1, on float32 features.
"""

import argparse
import time

import numpy as np
import torch

import stepclr
from stepclr.metrics import weighted_knn
from stepclr.model.features import represent, resized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("source")
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--bank", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    encoder = stepclr.load_encoder(given.run)
    images = stepclr.open_images(given.source)
    labeled = np.random.default_rng(given.seed).permutation(np.flatnonzero(images.labels >= 0))
    drawn = resized(images.take(labeled[: given.bank + given.queries]), encoder)
    for size in map(int, given.sizes.split(",")):
        begun = time.perf_counter()
        h, kept = represent(encoder.represent_at(size), drawn)
        labels = torch.from_numpy(drawn.labels[kept]).long()
        bank = len(kept) - given.queries
        right = weighted_knn(h[:bank], labels[:bank], h[bank:]) == labels[bank:]
        seconds = time.perf_counter() - begun
        print(f"{size} px: kNN {100 * right.float().mean():.1f}%, {bank:,} neighbors, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
