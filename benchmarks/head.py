"""Which projection head? stepclr's form and that of the authors' code (`ProjectionHead(reference=True)`).

    python benchmarks/head.py [--epochs 20] [--seeds 0,1,2] [--out runs/head]

The recipe `sample` on the bundled images, once for each form and seed; then weighted kNN and linear evaluation with 10
labels per class (5 label splits). The forms differ in the shift of the head's last BatchNorm and in the initialization
of its linear layers, and in nothing else. Runs that exist are not repeated, so the script can be stopped and restarted.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np

import stepclr

FORMS = {"stepclr's": False, "the authors' code": True}  # ProjectionHead's `reference`


def pretrain(out: Path, reference: bool, seed: int, epochs: int) -> None:
    """A run of the recipe with one form of the head, which no option of `pretrain` chooses."""

    def of_widths(features: int, widths: list[int]) -> stepclr.ProjectionHead:
        return stepclr.ProjectionHead(features, widths[0], widths[-1], len(widths), reference=reference)

    with patch.object(stepclr.ProjectionHead, "of_widths", of_widths):
        resume = (out / "config.json").exists()
        stepclr.pretrain("sample:unlabeled", out, recipe="sample", epochs=epochs, seed=seed, resume=resume)


def scores(out: Path) -> dict[str, float]:
    """Top-1 with 10 labels per class, the mean over the label splits: of kNN, and of linear evaluation (simclr)."""
    result = stepclr.evaluate(out, "sample:train", "sample:test", labels_per_class=10, baselines=())
    return {row.method: row.mean for row in result.rows if row.labels_per_class == 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/head"))
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    print("| head | kNN, % | linear evaluation, % | kNN of each seed | linear evaluation of each seed |")
    print("|---|---|---|---|---|")
    for form, reference in FORMS.items():
        of_seeds = []
        for seed in seeds:
            out = arguments.out / f"{'reference' if reference else 'default'}-{seed}"
            pretrain(out, reference, seed, arguments.epochs)
            of_seeds.append(scores(out))
        values = {method: 100 * np.array([one[method] for one in of_seeds]) for method in ("knn", "simclr")}
        means = [f"{of.mean():.1f} ± {of.std(ddof=min(1, len(of) - 1)):.1f}" for of in values.values()]
        each = [", ".join(f"{value:.1f}" for value in of) for of in values.values()]
        print(f"| {form} | {' | '.join([*means, *each])} |", flush=True)


if __name__ == "__main__":
    main()
