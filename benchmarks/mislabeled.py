"""How many planted wrong labels are among as many of the most doubtful labels of `stepclr find mislabeled`.

    python benchmarks/mislabeled.py INDEX [INDEX ...]    # of labeled images, written by stepclr embed

In each of DRAWS draws, SHARE of the labels of an index are replaced by another class at random. Precision is the share
of wrong labels among the first as many doubtful ones, which equals their recall; a random choice has SHARE. Wrong
labels that the data set itself has count as right.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

import stepclr

SHARE, DRAWS = 0.05, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("indexes", nargs="+")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| index | images | precision | suspected | of them wrong | labels that are predicted | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for where in given.indexes:
        index = stepclr.open_index(where)
        draws = np.array([draw(index, seed) for seed in range(DRAWS)])
        spread = draws[:, 0].std(ddof=1)
        precision, suspected, wrong, agreement, seconds = draws.mean(0)
        print(f"| {where} | {len(index):,} | {100 * precision:.1f} ± {100 * spread:.1f} % ", end="")
        print(f"| {suspected:.0f} | {wrong:.0%} | {agreement:.1%} | {seconds:.1f} |", flush=True)


def draw(index: stepclr.EmbeddingIndex, seed: int) -> tuple[float, ...]:
    """Precision, how many are suspected, the share of them that is wrong, the share that is predicted, and seconds."""
    generator = np.random.default_rng(seed)
    planted = generator.permutation(len(index))[: round(SHARE * len(index))]
    labels, classes = index.labels.copy(), len(index.classes)
    labels[planted] = (labels[planted] + generator.integers(1, classes, len(planted))) % classes
    begun = time.perf_counter()
    found = stepclr.find_mislabeled(replace(index, labels=labels), n=len(index), seed=seed)
    seconds = time.perf_counter() - begun
    wrong = np.isin(found.indices, planted)
    precision = wrong[: len(planted)].mean()
    return precision, found.suspected, wrong[: found.suspected].mean(), found.agreement, seconds


if __name__ == "__main__":
    main()
