"""What distinguishes broken runs from a healthy one: the figures that `tools/report/health.py` judges, of planted runs.

    python benchmarks/health.py [--kinds healthy collapsed ...] [--seeds 0 1 2] [--epochs 4] [--limit 1000]
        [--batch 64] [--temperature 0.2]

All train a test_resnet on the sample, without labels; kNN is scored on the sample's 1,000 labeled images. `way` is how
far the loss came from chance (0) to its least value (1), `early` the contrastive top-1 by step 100, `contrast` that at
the end.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import stepclr
from stepclr.pretraining.loop import Diverged
from stepclr.tools.report.health import facts_of, health
from stepclr.tools.report.log import Log

PLANTED: dict[str, dict[str, Any]] = {
    "healthy": {},
    "crop": {"policy": "crop", "strength": None, "blur": None},
    "collapsed": {"weight_decay": 30.0},
    "decay": {"weight_decay": 1.0},
    "rate 30": {"lr": 30.0},  # it recovers as the rate falls
    "rate 100": {"lr": 100.0},
    "rate 1000": {"lr": 1000.0},
    "rate 100000": {"lr": 1e5},  # it diverges
    "vit": {"encoder": "test_vit", "stem": "own", "size": 32},
    "vit, rate 10": {"encoder": "test_vit", "stem": "own", "size": 32, "lr": 10.0},
}


def planted(kind: str, seed: int, out: Path, **options: Any) -> stepclr.Run:
    """A run of that kind, until it ends or diverges."""
    settings: dict[str, Any] = {
        "encoder": "test_resnet",
        "stem": "small-stride2",
        "lr": 0.3,
        "head": "128-64",
        "strength": 1.0,
        "blur": 0.5,
        "min_area": 0.4,
        "monitor": "sample:train",
        "progress": False,
    }
    try:
        return stepclr.pretrain("sample:unlabeled", out, **{**settings, **options, **PLANTED[kind], "seed": seed})
    except Diverged:
        return stepclr.Run(out)


def main() -> None:
    """Print one line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(PLANTED), choices=list(PLANTED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.2)
    wanted = parser.parse_args()
    options = {name: getattr(wanted, name) for name in ("epochs", "limit", "temperature")}
    columns = ("loss", "way", "uniformity", "highest", "rank", "early", "contrast", "knn at first", "knn")
    print(f"{'kind':14}{'seed':>5}{'steps':>6}", *(f"{name:>12}" for name in columns), " verdict")
    for kind in wanted.kinds:
        for seed in wanted.seeds:
            with tempfile.TemporaryDirectory() as folder:
                run = planted(kind, seed, Path(folder) / "run", batch_size=wanted.batch, **options)
                facts = facts_of(run.config, Log(run.metrics))
                verdict = health(run.config, run.metrics)[0]
            figures = (
                facts.loss,
                facts.way,
                facts.uniformity,
                facts.highest_uniformity,
                facts.rank,
                facts.early_top1,
                facts.top1,
                facts.first_knn,
                facts.last_knn,
            )
            cells = (f"{figure:12.3f}" for figure in figures)
            print(f"{kind:14}{seed:5}{facts.step:6.0f}", *cells, f" {verdict.name}", flush=True)


if __name__ == "__main__":
    main()
