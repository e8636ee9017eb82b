"""Whether each path of a GPU computes what the CPU computes: one table, in a few minutes, and it needs no images.

    python benchmarks/gpu_correct.py [--rows views,loss,step,curve,waits,settings] [--out FILE.jsonl]
    python benchmarks/gpu_correct.py --device cpu --quick  # tries the script: the CPU against itself
    python benchmarks/gpu_correct.py --device cpu --quick --compile  # and all that is compiled on a GPU, on the CPU

- views: rendered on the device, compiled if that works, against the reference on the CPU with the same parameters.
- loss: nt_xent, dcl and supcon, value and gradient, against the plain equation in float64 on the CPU.
- step: the gradient of a ResNet-18 and its head by one step of Algorithm 1, against float32 on the CPU: in float32
  (whose convolutions may use TF32: rounded like that on a CPU, they change it by 3 to 4%), in bf16, and by the compiled
  modules that the loop calls.
- curve: the losses of a run on one batch of the bundled sample in float32, on the device and on the CPU: of the first
  step, of the second, which the first has changed, and their mean. The third may differ by percents on a path that is
  right, as the rounding of TF32 grows quickly.
- settings: that a user's own TF32 setting, in torch's old words, does not break the loss, which sets another inside.
- waits: that neither views nor loss nor their gradient make the host wait for the device.

Each row has the largest error, what is allowed, and "ok" or "WRONG"; one that fails says why, and the others continue.
Errors are relative to the norm of what is compared, except those of views, which are per pixel. The exit status is 1 if
any row is wrong. Rows that FILE.jsonl has as ok for the same device and version are not repeated.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rows import Stored
from torch import Tensor

import stepclr
from stepclr.device import compiles
from stepclr.loss import tiles
from stepclr.loss.contrastive import contrastive
from stepclr.loss.reference import anchor_losses
from stepclr.pretraining import loop
from stepclr.pretraining.model import SimCLR
from stepclr.views import cuda
from stepclr.views.cuda import render_cuda
from stepclr.views.keys import view_keys
from stepclr.views.reference import render_reference

TEMPERATURE, D = 0.2, 128
CURVE = ["pretrain", "sample:unlabeled", "--encoder", "test_resnet", "--stem", "small-stride2", "--precision", "fp32"]
CURVE += ["--limit", "64", "--batch-size", "64"]  # each step is an epoch, so that its loss is logged
STEPCLR = [sys.executable, "-m", "stepclr"]
COMPILING = "import gpu_correct; gpu_correct.compile_on_a_cpu(); from stepclr.cli import main; main()"

Check = tuple[str, float, float]  # what is compared, its error, and what is allowed
Checker = Callable[[torch.device, bool], Iterator[Check]]


compiling_on_cpu = False


def compile_on_a_cpu() -> None:
    """From here on this process compiles on the CPU what it would compile on a GPU, and makes tiles twice as there."""
    global compiling_on_cpu
    compiling_on_cpu = True
    tiles.KEPT_NUMBERS = 0
    for module in (tiles, cuda, loop):
        module.__dict__["compiles"] = lambda _: True


def relative(made: Tensor, expected: Tensor) -> float:
    """|made - expected| / |expected|; NaN never passes a comparison."""
    made, expected = made.detach().cpu().double(), expected.detach().cpu().double()
    return float((made - expected).norm() / expected.norm())


def views(device: torch.device, quick: bool) -> Iterator[Check]:
    images = stepclr.open_images("sample:unlabeled").read(range(8 if quick else 256))
    assert isinstance(images, Tensor)
    images = torch.stack([images[:, 0], images[:, 0].roll(3, 1), images[:, 0].roll(5, 2)], 1)  # three unlike channels
    policies = [
        stepclr.Views("simclr", 32, strength=1.0, blur=0.5),
        stepclr.Views("simaugment", 96, strength=1.0, blur=0.5),
        stepclr.Views("crop", 32),
    ]
    for policy in policies:
        params = policy.sample_params(images, view_keys(0, 0, range(len(images))))
        expected = torch.stack([render_reference(images, view, policy.size, policy.interpolation) for view in params])
        there = images.to(device)
        for form in ("first batch", "second", "third, compiled on a GPU"):
            made = render_cuda(there, params, policy.size, policy.interpolation)
            yield f"views {policy.policy} {policy.size} px, {form}", float((made.cpu() - expected).abs().max()), 1 / 255


def loss(device: torch.device, quick: bool) -> Iterator[Check]:
    n = 150 if quick else 5000  # more than one tile each way
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2 * n, D, generator=generator)
    images = torch.arange(n).repeat(2)
    classes = torch.randint(0, 10, (n,), generator=generator).repeat(2)
    for name, groups, inside in (("nt_xent", images, True), ("dcl", images, False), ("supcon", classes, True)):
        exact = z.double().requires_grad_()
        expected = anchor_losses(exact, groups, TEMPERATURE, positives_in_denominator=inside).mean()
        expected.backward()
        there = z.to(device, copy=True).requires_grad_()
        made = contrastive(there, groups.to(device), TEMPERATURE, positives_in_denominator=inside)
        made.backward()
        assert exact.grad is not None
        assert there.grad is not None
        yield f"loss {name}, M = {2 * n:,}", relative(made, expected), 1e-5
        yield f"its gradient, {name}", relative(there.grad, exact.grad), 1e-4


def step(device: torch.device, quick: bool) -> Iterator[Check]:
    size, n = 32, 4 if quick else 64
    x = torch.rand(2 * n, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    encoder = stepclr.build_encoder("test_resnet" if quick else "resnet18", "small", size=size)
    model = SimCLR(encoder, stepclr.ProjectionHead(encoder.num_features, encoder.num_features, D)).train()

    def gradient(there: torch.device, half: bool, compiled: bool) -> Tensor:
        model.to(there, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.zero_grad()
        f: Any = torch.compile(model.encoder, dynamic=False) if compiled else model.encoder
        g: Any = torch.compile(model.head, dynamic=False) if compiled else model.head
        with torch.autocast(there.type, torch.bfloat16, enabled=half):
            z_i, z_j = g(f(x.to(there))).chunk(2)
        stepclr.nt_xent(z_i, z_j, TEMPERATURE).backward()
        return torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])

    expected = gradient(torch.device("cpu"), half=False, compiled=False)
    yield "gradient of a step, float32", relative(gradient(device, half=False, compiled=False), expected), 0.1
    yield "gradient of a step, bf16", relative(gradient(device, half=True, compiled=False), expected), 0.3
    if compiling_on_cpu or compiles(device):
        yield "gradient of a step, float32, compiled", relative(gradient(device, False, compiled=True), expected), 0.1
        yield "gradient of a step, bf16, compiled", relative(gradient(device, True, compiled=True), expected), 0.3


def curve(device: torch.device, quick: bool) -> Iterator[Check]:
    losses = []
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    here = STEPCLR, dict(os.environ) if device.type == "cuda" else without_gpu
    if compiling_on_cpu:  # with the folder of this script on the path
        here = [sys.executable, "-c", COMPILING], without_gpu | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for command, environment in ((STEPCLR, without_gpu), here):
        with tempfile.TemporaryDirectory() as folder:
            words = [*CURVE, "--epochs", "3" if quick else "30", "--out", f"{folder}/run"]
            done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().split("\n")[-1])
            losses.append(torch.tensor([line["loss"] for line in stepclr.Run(Path(folder) / "run").metrics]))
    on_cpu, there = losses
    yield "loss of the first step", relative(there[0], on_cpu[0]), 0.001
    yield "loss of the second", relative(there[1], on_cpu[1]), 0.001
    yield f"mean loss of {len(on_cpu)} steps", relative(there.mean(), on_cpu.mean()), 0.03


def waits(device: torch.device, quick: bool) -> Iterator[Check]:
    if device.type != "cuda":
        return  # nobody waits for a CPU
    images = torch.randint(0, 256, (64 if quick else 512, 3, 40, 40), dtype=torch.uint8, device=device)
    policy = stepclr.Views("simclr", 32, strength=1.0, blur=0.5)
    keys = view_keys(0, 0, range(len(images)))

    def once() -> None:
        x = policy(images, keys)
        z = x.mean((3, 4)).requires_grad_()
        stepclr.nt_xent(z[0], z[1], TEMPERATURE).backward()

    for _ in range(5):  # compiles
        once()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # an operation that waits raises
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    yield "views, loss and gradient wait for nothing", 0.0, 0.0


def settings(device: torch.device, quick: bool) -> Iterator[Check]:
    n = 64 if quick else 1024
    z = torch.randn(n, D, generator=torch.Generator().manual_seed(0))
    exact = anchor_losses(z.double(), torch.arange(n // 2).repeat(2), TEMPERATURE).mean()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        z_i, z_j = z.to(device).chunk(2)
        yield (
            "loss after set_float32_matmul_precision('high')",
            relative(stepclr.nt_xent(z_i, z_j, TEMPERATURE), exact),
            1e-5,
        )
        still = torch.get_float32_matmul_precision() == "high"
        yield "which is 'high' afterwards too", 0.0 if still else 1.0, 0.0
    finally:
        torch.set_float32_matmul_precision(before)


CHECKS: dict[str, Checker] = {
    "loss": loss,
    "views": views,
    "waits": waits,
    "step": step,
    "curve": curve,
    "settings": settings,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(CHECKS), help="kinds of rows, with commas")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--compile", action="store_true", help="with --device cpu: compile there what a GPU compiles")
    parser.add_argument("--out", type=Path, help="file to which each row is added, and that says which are done")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device; --device cpu --quick tries the script")
    if given.compile and device.type == "cpu":
        compile_on_a_cpu()
    stored = Stored(given.out, given.device, given.quick)
    wrong = 0
    print(f"{stored.card}; torch {torch.__version__}, stepclr {stepclr.__version__}\n")
    print("| what | error | allowed | |\n|---|---|---|---|", flush=True)
    for kind in given.rows.split(","):
        if kind in stored.done:
            print(f"| {kind} | ok before | | |", flush=True)
            continue
        passed = True
        for row in checked(CHECKS[kind], device, given.quick):
            passed &= row[-1] == "ok"
            print(f"| {' | '.join(row)} |", flush=True)
        stored.add(kind, "ok" if passed else "WRONG", passed)
        wrong += not passed
    return min(wrong, 1)


def checked(
    check: Callable[[torch.device, bool], Iterator[Check]], device: torch.device, quick: bool
) -> Iterator[list[str]]:
    """The cells of each comparison; a failure is a row too."""
    try:
        for what, error, allowed in check(device, quick):
            yield [what, f"{error:.2g}", f"{allowed:.2g}", "ok" if error <= allowed else "WRONG"]
    except Exception as error:  # a check that fails does not stop the others
        first_line = str(error).strip().split("\n")[0]
        yield [check.__name__, f"{type(error).__name__}: {first_line[:200]}", "", "WRONG"]


if __name__ == "__main__":
    raise SystemExit(main())
