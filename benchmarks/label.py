"""Are 60 labels that `stepclr label` chooses better than 60 random ones? Fine-tuned, on images that nobody chose from.

    python benchmarks/label.py RUN TRAIN TEST    # class folders or NAME:SPLIT

For each of SEEDS seeds, POOL images of TRAIN, drawn by the seed, are without labels. LABELS of them get their true
label: chosen at once, as the first page chooses them; in two rounds, where the second knows the labels of the first;
at random. The run is fine-tuned on each with its defaults and scored on TEST, top-1.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

import stepclr
from stepclr.tools.curate.suggest import choose_images

SEEDS, POOL, LABELS = 5, 750, 60
Rows = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "train", "test"):
        parser.add_argument(name)
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    train, test = stepclr.open_images(given.train), stepclr.open_images(given.test)
    h = stepclr.embed(given.run, train)
    scores: dict[str, list[float]] = {name: [] for name in CHOICES}
    for seed in range(SEEDS):
        pool = np.random.default_rng(seed).permutation(len(train))[:POOL]
        for name, choose in CHOICES.items():
            chosen = choose(h[pool], train.labels[pool], seed)
            assert len(chosen) == len(set(chosen.tolist())) == LABELS
            scores[name].append(top1(given.run, train.take(pool[chosen]), test, seed))
            print(f"seed {seed}, {name}: {scores[name][-1]:.4f}", flush=True)
    print(f"\n| {LABELS} labels | top-1 | seeds won |\n|---|---|---|")
    for name, values in scores.items():
        won = sum(a > b for a, b in zip(values, scores["random"], strict=True))
        print(f"| {name} | {np.mean(values):.1%} ± {np.std(values, ddof=1):.1%} | {won} of {SEEDS} |")
    print(f"{time.perf_counter() - begun:.0f} s")


def at_once(h: NDArray[np.float32], labels: Rows, seed: int) -> Rows:
    return choose_images(h, np.full(len(labels), -1), LABELS, seed)[0]


def in_two_rounds(h: NDArray[np.float32], labels: Rows, seed: int) -> Rows:
    first = at_once(h, labels, seed)[: LABELS // 2]
    known = np.full(len(labels), -1)
    known[first] = labels[first]
    return np.concatenate([first, choose_images(h, known, LABELS - len(first), seed)[0]])


def at_random(h: NDArray[np.float32], labels: Rows, seed: int) -> Rows:  # noqa: ARG001
    return np.random.default_rng(100 + seed).permutation(len(h))[:LABELS]


CHOICES: dict[str, Callable[[NDArray[np.float32], Rows, int], Rows]] = {
    "random": at_random,
    "stepclr label, one page": at_once,
    "stepclr label, two pages": in_two_rounds,
}


def top1(run: str, train: stepclr.ImageSet, test: stepclr.ImageSet, seed: int) -> float:
    """Of the run fine-tuned on these labels, the share of correct predictions."""
    with TemporaryDirectory() as folder:
        classifier = Path(folder) / "classifier.safetensors"
        stepclr.finetune(Path(run) / "encoder.safetensors", train, out=classifier, seed=seed)
        predicted = stepclr.predict(classifier, test)
    best = predicted.probabilities.argmax(1)
    correct = [predicted.classes[i] == test.class_name(row) for row, i in enumerate(best.tolist())]
    return float(np.mean(correct))


if __name__ == "__main__":
    main()
