"""Makes the bundled sample from Debian's package `dataset-fashion-mnist`: python tests/make_sample.py [FOLDER].

10,000 training images for pretraining (their labels are not kept), 1,000 other training images with labels
(100 per class) and 2,000 test images with labels (200 per class), all 28x28 gray. The choice depends on the seed alone.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SAMPLE = Path(__file__).resolve().parents[1] / "src/stepclr/data/sample/fashion_mnist.npz"
LIMIT = 6_000_000  # bytes


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file: 0, 0, 8 (bytes), how many axes, each as a big-endian int, the values."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", axes, offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def balanced(labels: NDArray[np.uint8], per_class: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `per_class` images of each class, drawn without replacement, in their original order."""
    drawn = [random.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def make(source: Path) -> dict[str, NDArray[np.uint8]]:
    """The five arrays of the sample."""
    random = np.random.default_rng(0)
    images = read_idx(source / "train-images-idx3-ubyte.gz")
    labels = read_idx(source / "train-labels-idx1-ubyte.gz")
    train = balanced(labels, 100, random)
    others = np.setdiff1d(np.arange(len(labels)), train)
    unlabeled = np.sort(random.choice(others, 10_000, replace=False))
    test_images = read_idx(source / "t10k-images-idx3-ubyte.gz")
    test_labels = read_idx(source / "t10k-labels-idx1-ubyte.gz")
    test = balanced(test_labels, 200, random)
    return {
        "unlabeled": images[unlabeled],
        "train": images[train],
        "train_labels": labels[train],
        "test": test_images[test],
        "test_labels": test_labels[test],
    }


if __name__ == "__main__":
    np.savez_compressed(SAMPLE, allow_pickle=False, **make(Path(sys.argv[1]) if sys.argv[1:] else DEBIAN))
    size = SAMPLE.stat().st_size
    print(f"{SAMPLE}: {size:,} bytes")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT:,} bytes")
