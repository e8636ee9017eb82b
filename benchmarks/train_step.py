"""Images a second of the whole training loop: stepclr's against lightly's SimCLR loop, in one run.

    pip install '.[bench]'
    python benchmarks/train_step.py FOLDER [--size 32] [--batch 128] [--stem small] [--encoder resnet18]
        [--seconds 60] [--turns 2] [--alone]

FOLDER holds images (any class folders are ignored). All train the same ResNet on the same images with the same batch,
in turns. "lightly" is the loop of its own benchmark (lightly_loop.py) with two DataLoader workers, in float32;
"lightly-bf16" the same under autocast and with channels_last, so that engineering and precision are told apart; in a
third row stepclr's layers for the CPU compute its network too, so that what is left is views, feed and loss. stepclr's
side is `stepclr pretrain` with its defaults. Each side runs for the given time after a warm-up; loading and start-up do
not count. With --alone, stepclr runs without lightly.

After each step of stepclr, the network's convolutions are timed alone, forward and backward, at the shapes of a step
and as the loop computes them, so that both are of the same minutes of a machine that is not always equally fast; that
does not count as time of the loop. A matrix product of the same precision gives the machine's roof. The second line of
a turn says how much of a step is convolutions, and what the parts take that can be told apart: the views, the loss
(forward), zero_grad, the optimizer, and the feed, which is all between two steps (waiting for images, the learning
rate, the log). The rest is BatchNorm, ReLU, additions, pooling, the head and the loss's gradient.
"""

import argparse
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
from lightly_loop import NAMES, LightlyLoop
from torch import Tensor, nn

import stepclr
from stepclr.config import PretrainConfig
from stepclr.device import bf16_helps
from stepclr.model.cpu_conv import use_cpu_convolutions
from stepclr.pretraining import loop

ROUNDS = 5  # of the matrix product
ROOF_SIDE = 2048  # of its matrices
WARM_UP = 3  # steps
Stem = Literal["imagenet", "small", "small-stride2"]


@dataclass(frozen=True)
class Setting:
    """What both sides train, and for how long."""

    folder: Path
    size: int
    batch: int
    stem: Stem
    encoder: str
    seconds: float


def lightly_images_a_second(setting: Setting, bf16: bool, stepclr_layers: bool = False) -> float:
    """Images over time of lightly's loop."""
    images, begun = 0, 0.0
    loop = LightlyLoop(setting.folder, setting.size, setting.stem, 10**6, setting.batch, bf16, setting.encoder)
    with loop.stepclr_layers() if stepclr_layers else nullcontext():
        for step, count in enumerate(loop.steps(endless=True), 1):
            if step == WARM_UP:
                begun = time.perf_counter()
            elif step > WARM_UP:
                images += count
                if time.perf_counter() - begun > setting.seconds:
                    break
    return images / (time.perf_counter() - begun)


def lightly_speeds(setting: Setting) -> dict[str, float]:
    """Images a second of lightly's loop in each of its forms."""
    speeds = {name: lightly_images_a_second(setting, bf16) for name, bf16 in NAMES.items()}
    return speeds | {"lightly-bf16 with stepclr's layers": lightly_images_a_second(setting, True, stepclr_layers=True)}


@dataclass
class Pace:
    """What the steps of one turn took."""

    begun: list[float] = field(default_factory=list)
    """When each step began."""
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of each part, all steps after the warm-up together."""
    alone: list[float] = field(default_factory=list)
    """Seconds of the convolutions alone, after each step."""
    outside: float = 0.0
    """Seconds that were spent on that, those of the warm-up left out."""

    @property
    def steps(self) -> int:
        return len(self.begun) - 1 - WARM_UP

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return (self.begun[-1] - self.begun[WARM_UP] - self.outside) / self.steps

    def share(self, part: str) -> float:
        """Of the time of the steps."""
        return self.spent[part] / self.steps / self.step

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for `part`."""

        def call(*args: Any, **options: Any) -> Any:
            since = time.perf_counter()
            result = function(*args, **options)
            if len(self.begun) > WARM_UP:
                self.spent[part] += time.perf_counter() - since
            return result

        return call


def stepclr_pace(setting: Setting, alone: Callable[[], float]) -> Pace:
    """The real `pretrain`, stopped after its seconds; `alone` says what its convolutions take."""
    pace, ended = Pace(), [0.0]
    step = loop.train_step

    def timed(model: nn.Module, optimizer: Any, algorithm: Any, inputs: tuple[Any, ...], *rest: Any) -> Any:
        now = time.perf_counter()
        if len(pace.begun) > WARM_UP:
            pace.spent["feed"] += now - ended[0]
        pace.begun.append(now)
        if pace.steps > 0 and pace.step * pace.steps > setting.seconds:
            raise TimeoutError
        views, loss, *batch_of_step = inputs
        inputs = (pace.timed("views", views), pace.timed("loss", loss), *batch_of_step)
        with (
            patch.object(optimizer, "zero_grad", pace.timed("zero_grad", optimizer.zero_grad)),
            patch.object(optimizer, "step", pace.timed("optimizer", optimizer.step)),
        ):
            result = step(model, optimizer, algorithm, inputs, *rest)
        since = time.perf_counter()
        seconds = alone()
        ended[0] = time.perf_counter()
        if len(pace.begun) > WARM_UP:
            pace.alone.append(seconds)
            pace.outside += ended[0] - since
        return result

    try:
        with tempfile.TemporaryDirectory() as out, patch.object(loop, "train_step", timed):
            config = PretrainConfig(
                setting.encoder, stem=setting.stem, size=setting.size, batch_size=setting.batch, epochs=1000
            )
            stepclr.pretrain(setting.folder, Path(out) / "run", config=config, progress=False)
    except TimeoutError:
        pass
    return pace


@dataclass(frozen=True)
class Convolution:
    """One convolution of the network, for the images of a step."""

    module: nn.Conv2d
    seen: tuple[int, ...]
    """Shape of its input."""
    made: tuple[int, ...]
    first: bool
    """Whether it sees the images themselves, which need no gradient."""

    @property
    def flops(self) -> float:
        """Of forward and backward: the gradients of weight and input cost as much as the product itself."""
        _, channels, high, wide = self.module.weight.shape
        products = 2 if self.first else 3
        return products * 2 * torch.Size(self.made).numel() * channels * high * wide

    def seconds(self) -> float:
        """Of forward and backward, once."""
        dtype = torch.bfloat16 if bf16_helps() else torch.float32
        x = torch.randn(self.seen).to(dtype, memory_format=torch.channels_last).requires_grad_(not self.first)
        g = torch.randn(self.made).to(dtype, memory_format=torch.channels_last)
        self.module.weight.grad = None
        since = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_helps()):
            y = self.module(x)
        y.backward(g)
        return time.perf_counter() - since


def convolutions(network: nn.Module, size: int, images: int) -> list[Convolution]:
    """The network's convolutions as a step of so many images meets them."""
    met: list[Convolution] = []

    def note(module: nn.Module, seen: tuple[Tensor], made: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        met.append(Convolution(module, (images, *seen[0].shape[1:]), (images, *made.shape[1:]), first=not met))

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(note) for module in layers]
    with torch.no_grad():
        network(torch.zeros(2, 3, size, size))
    for hook in hooks:
        hook.remove()
    return met


def convolutions_alone(setting: Setting) -> tuple[Callable[[], float], float]:
    """What times the network's convolutions alone, forward and backward, for the images of a step; and their FLOPs."""
    network = stepclr.build_encoder(setting.encoder, setting.stem, size=setting.size).to(
        memory_format=torch.channels_last
    )
    use_cpu_convolutions(network)
    met = convolutions(network, setting.size, 2 * setting.batch)

    def seconds() -> float:
        total, known = 0.0, dict[tuple[Any, ...], float]()
        for each in met:
            shape = (each.seen, each.module.weight.shape, each.module.stride, each.first)
            if shape not in known:
                known[shape] = each.seconds()
            total += known[shape]
        return total

    return seconds, sum(each.flops for each in met)


def roof() -> float:
    """FLOP/s of a matrix product in the precision of a step, the best of some rounds."""
    dtype = torch.bfloat16 if bf16_helps() else torch.float32
    a, b = torch.randn(2, ROOF_SIDE, ROOF_SIDE).to(dtype)
    times = []
    for _ in range(ROUNDS):
        since = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - since)
    return 2 * ROOF_SIDE**3 / min(times)


def where_it_goes(pace: Pace, flops: float) -> str:
    """The second line of a turn."""
    seconds = sum(pace.alone[:-1]) / (len(pace.alone) - 1)  # the last step is not one that counts
    most = roof()
    parts = [f"{part} {pace.share(part):.1%}" for part in ("views", "loss", "zero_grad", "optimizer", "feed")]
    rest = 1 - seconds / pace.step - sum(pace.spent.values()) / pace.steps / pace.step
    return (
        f"a step takes {1000 * pace.step:,.0f} ms, {pace.step / seconds:.2f} times its convolutions alone "
        f"({1000 * seconds:,.0f} ms): not a convolution {1 - seconds / pace.step:.1%}, of which {', '.join(parts)}, "
        f"the rest {rest:.1%}; share of the roof of {most / 1e9:,.0f} GFLOP/s: step {flops / pace.step / most:.0%}, "
        f"convolutions {flops / seconds / most:.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--stem", default="small", choices=get_args(Stem))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--alone", action="store_true")
    given = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, bf16 {bf16_helps()}; "
        f"torch {version('torch')}, lightly {version('lightly')}, stepclr {stepclr.__version__}\n"
        f"{given.encoder}, stem {given.stem}, {given.size} px, batch {given.batch}, {given.seconds:g} s each"
    )
    setting = Setting(given.folder, given.size, given.batch, given.stem, given.encoder, given.seconds)
    alone, flops = convolutions_alone(setting)
    for turn in range(1, given.turns + 1):
        theirs = {} if given.alone else lightly_speeds(setting)
        pace = stepclr_pace(setting, alone)
        ours = given.batch / pace.step
        words = [f", {name} {speed:.1f} images/s (ratio {ours / speed:.2f})" for name, speed in theirs.items()]
        print(f"turn {turn}: stepclr {ours:.1f} images/s{''.join(words)}", flush=True)
        print(f"  {where_it_goes(pace, flops)}", flush=True)


if __name__ == "__main__":
    main()
