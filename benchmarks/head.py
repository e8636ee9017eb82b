"""Which projection head? stepclr's form and that of the authors' code (`--head 512-128:reference`).

    python benchmarks/head.py [--epochs 20] [--seeds 0,1,2] [--out runs/head]

The recipe `sample` on the bundled images, once for each form and seed; then weighted kNN and linear evaluation with 10
labels per class (5 label splits). The forms differ in the shift of the head's last BatchNorm and in the initialization
of its linear layers, and in nothing else. Runs that exist are not repeated, so the script can be stopped and restarted.
"""

import argparse
from pathlib import Path

import numpy as np

import stepclr

FORMS = {"stepclr's": "batchnorm", "the authors' code": "reference"}


def pretrain(out: Path, form: str, seed: int, epochs: int) -> None:
    """A run of the recipe with one form of the head."""
    resume = (out / "config.json").exists()
    head = f"512-128:{form}"
    stepclr.pretrain("sample:unlabeled", out, recipe="sample", epochs=epochs, seed=seed, head=head, resume=resume)


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
    for name, form in FORMS.items():
        of_seeds = []
        for seed in seeds:
            out = arguments.out / f"{form}-{seed}"
            pretrain(out, form, seed, arguments.epochs)
            of_seeds.append(scores(out))
        values = {method: 100 * np.array([one[method] for one in of_seeds]) for method in ("knn", "simclr")}
        means = [f"{of.mean():.1f} ± {of.std(ddof=min(1, len(of) - 1)):.1f}" for of in values.values()]
        each = [", ".join(f"{value:.1f}" for value in of) for of in values.values()]
        print(f"| {name} | {' | '.join([*means, *each])} |", flush=True)


if __name__ == "__main__":
    main()
