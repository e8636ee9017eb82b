"""Whether a change leaves every result as it was: the same small runs before and after it, compared bit for bit.

    python tests/same_results.py before.json                       # on the code before the change
    python tests/same_results.py after.json                        # on the code after it, on the same machine
    python tests/same_results.py --compare before.json after.json  # tells what differs; exits with 1 if anything does

Every run goes through what stays whatever is rearranged inside: the command line, and the names that README.md and
`stepclr.__all__` promise. What comes out is recorded as checksums of tensors, arrays and pixels, and small tables of
numbers as they are; times, paths, file metadata and the names of columns are left out. An entry with the mean beside
the checksum tells a last digit from another result.

`--only TEXT` takes the cases whose name has TEXT in it, `--list` prints the names. A case that fails is recorded as
such, and the others continue. PYTHONPATH=OTHER/src runs the code of another checkout; one thread, and no network.
The results are those of one kind of processor and one version of torch: never compare across machines.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are imported, and for the processes that are started
os.environ["COLUMNS"] = "200"  # no table is folded

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import stepclr
from stepclr.cli import main as command_line

Entry = tuple[str, object]
Options = dict[str, object]

SMALL: Options = {
    "encoder": "test_resnet",
    "stem": "small-stride2",
    "head": "32-16",
    "batch-size": 32,
    "limit": 96,
    "epochs": 2,
    "precision": "fp32",
}
LOSSES = ("nt_xent", "supcon", "cross-entropy")
MEASURED = ("step", "epoch", "loss", "lr", "contrastive_top1", "alignment", "uniformity", "negatives", "top1")
FUSED = "ColorJitter(strength=0.7, p=0.9)+Warp(p=0.6)+Blur(p=0.6)"  # both renderers know these ops
MIXED = "RandAugment(layers=1, magnitude=12)+ColorJitter(strength=0.4)+AutoAugment(table='svhn')"
POLICIES = (
    "simclr",
    "simaugment",
    "crop",
    FUSED,
    "autoaugment",
    "autoaugment:cifar10",
    "autoaugment:svhn",
    "randaugment",
    "randaugment:3,15",
    "stacked",
    MIXED,
)
DOMAINS = ("domain:aerial", "domain:microscopy", "domain:xray", "domain:document")
PATIENCE = 300  # seconds that a process of its own may take


class Failed(Exception):
    """A command that ended otherwise than it should."""


# What is recorded


def checksum(tensor: Tensor) -> str:
    """Type, shape and SHA-256 of a tensor's bytes, with the mean to see how far two results are apart."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {list(tensor.shape)} mean {flat.double().mean().item():.9g} sha256 {digest}"


def checksum_of_all(lines: Iterable[object]) -> str:
    """One checksum of many things, in their order."""
    told = [str(line) for line in lines]
    return f"{len(told)} in all, sha256 {hashlib.sha256(chr(10).join(told).encode()).hexdigest()}"


def named_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; what the file says of itself is left out."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict


def weights(path: Path) -> str:
    """The tensors of a safetensors file with their names."""
    return checksum_of_all(f"{name} {checksum(tensor)}" for name, tensor in sorted(named_tensors(path).items()))


def state(path: Path) -> str:
    """The tensors of a checkpoint, weights and optimizer, whatever they are called."""
    return checksum_of_all(sorted(checksum(tensor) for tensor in named_tensors(path).values()))


def pixels(path: Path) -> str:
    """The pixels of an image file."""
    with Image.open(path) as image:
        return checksum(torch.from_numpy(np.array(image.convert("RGBA"))))


def rows(path: Path) -> list[list[str]]:
    """The cells of a CSV without its header, of paths the last part."""
    with path.open(newline="") as file:
        return [[cell.rsplit("/", 1)[-1] for cell in row] for row in list(csv.reader(file))[1:]]


def scores(path: Path) -> list[dict[str, Any]]:
    """The rows of evaluation.json or finetune.json."""
    names = ("method", "labels_per_class", "mean", "std", "values")
    return [{name: row[name] for name in names} for row in json.loads(path.read_text())["rows"]]


def metrics(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of the learning, and not of the time it took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name in MEASURED or name.startswith("knn")} for line in lines]


def embeddings(path: Path) -> Iterator[Entry]:
    """h and the labels of an .npz."""
    with np.load(path) as arrays:
        for array in arrays.values():
            if array.dtype.kind in "fi":
                yield {"f": "h", "i": "labels"}[array.dtype.kind], checksum(torch.from_numpy(array))


def results(run: Path) -> Iterator[Entry]:
    """Everything numeric that a run's folder holds after pretraining."""
    yield "metrics", metrics(run)
    yield "encoder", weights(run / "encoder.safetensors")
    if (run / "classifier.safetensors").exists():
        yield "classifier", weights(run / "classifier.safetensors")
    for number, path in enumerate(sorted((run / "checkpoint").glob("*.safetensors"))):
        yield f"checkpoint {number}", state(path)


def under(name: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same entries, with a word before the name of each."""
    for entry, value in entries:
        yield f"{name}: {entry}", value


# How it is run


def exit_code(*words: object) -> tuple[int, str, str]:
    """Run a command of the command line in this process; its exit code and what it printed and complained of."""
    out, complaints = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaints):
        try:
            command_line([str(word) for word in words])
        except SystemExit as end:
            code = end.code
    return (code if isinstance(code, int) else int(code is not None)), out.getvalue(), complaints.getvalue()


def command(*words: object) -> str:
    """Run a command that should succeed; what it printed."""
    code, printed, complaints = exit_code(*words)
    if code:
        raise Failed(f"stepclr {words[0]} ended with {code}: {last_line(complaints)}")
    return printed


def process(*words: object) -> None:
    """Run python with these arguments in a process of its own, and wait for it."""
    start = [sys.executable, *map(str, words)]
    done = subprocess.run(start, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise Failed(f"a process ended with {done.returncode}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def as_words(options: Options) -> list[str]:
    """Options as the command line takes them; True is a flag."""
    pairs = ([f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in options.items())
    return [word for pair in pairs for word in pair]


class Work:
    """A folder to work in, and what several cases begin with; each is made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = itertools.count()

    def place(self, suffix: str = "") -> Path:
        """A path that nothing has yet."""
        return self.folder / f"{next(self._count):03}{suffix}"

    def pretrain(self, source: object = "sample:train", **changes: object) -> Path:
        """A run by the command line with the options of SMALL, some of them changed."""
        out = self.place()
        command("pretrain", source, "--out", out, *as_words(self.options(changes)))
        return out

    def options(self, changes: Options) -> Options:
        """SMALL with changes: names have an underscore for a hyphen, None leaves an option out."""
        changed = {name.replace("_", "-"): value(self) if callable(value) else value for name, value in changes.items()}
        return {name: value for name, value in (SMALL | changed).items() if value is not None}

    def copy(self, run: Path) -> Path:
        """A copy of a run, for a command that writes into it."""
        return shutil.copytree(run, self.place())

    @cached_property
    def run(self) -> Path:
        """A run of nt_xent."""
        return self.pretrain()

    @cached_property
    def bf16(self) -> Path:
        """A run in bf16."""
        return self.pretrain(precision="bf16")

    @cached_property
    def deep_head(self) -> Path:
        """A run with a head of three layers."""
        return self.pretrain(head="32-32-16")

    @cached_property
    def teacher(self) -> Path:
        """A classifier of all classes of the sample."""
        out = self.place(".safetensors")
        few = ("--labels-per-class", 4, "--epochs", 3, "--out", out)
        command("finetune", self.copy(self.run), "--train", "sample:train", *few)
        return out

    @cached_property
    def files(self) -> Path:
        """A folder of files of many kinds and sizes: classes of 16, 8 and 6 images, and 9 without a label."""
        folder = self.place()
        for number, (name, image) in enumerate(drawn_images(39)):
            kind = ("cat",) * 16 + ("dog",) * 8 + ("owl",) * 6 + (".",) * 9
            (folder / kind[number]).mkdir(parents=True, exist_ok=True)
            save_as_some_kind(image, folder / kind[number] / name, number)
        for name in ("image-01", "image-04", "image-07"):  # near duplicates
            (original,) = folder.rglob(f"{name}.*")
            with Image.open(original) as image:
                image.convert("RGB").save(folder / f"again-{name}.jpg", quality=60)
        return folder

    @cached_property
    def zipped(self) -> Path:
        """The same files in a zip."""
        out = self.place(".zip")
        with zipfile.ZipFile(out, "w") as archive:
            for path in sorted(self.files.rglob("*.*")):
                archive.write(path, path.relative_to(self.files))
        return out

    @cached_property
    def damaged(self) -> Path:
        """The same files and one that is cut short."""
        folder = shutil.copytree(self.files, self.place())
        whole = (folder / "cat" / "image-00.jpg").read_bytes()
        (folder / "cat" / "broken.jpg").write_bytes(whole[: len(whole) // 8])
        return folder

    @cached_property
    def shards(self) -> Path:
        """The same files in tar shards, byte for byte."""
        out = self.place()
        command("pack", self.files, "--out", out, "--per-shard", 16)
        return out

    @cached_property
    def small_shards(self) -> Path:
        """The same files in tar shards, the larger ones reduced."""
        out = self.place()
        command("pack", self.files, "--out", out, "--per-shard", 30, "--short-side", 40)
        return out

    @cached_property
    def labeled_rows(self) -> Path:
        """Embeddings of the files."""
        out = self.place(".npz")
        command("embed", self.run, self.files, "--out", out)
        return out


def drawn_images(count: int) -> Iterator[tuple[str, Image.Image]]:
    """Smooth colored shapes of 20 to 130 pixels a side, each with a name without a suffix."""
    draw = np.random.default_rng(7)
    for number in range(count):
        coarse = draw.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        width, height = (int(side) for side in draw.integers(20, 131, 2))
        yield f"image-{number:02}", Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save_as_some_kind(image: Image.Image, path: Path, number: int) -> None:
    """JPEG or PNG, in color or gray, with transparency, a palette or a turned camera, as the number says."""
    turned = Image.Exif()
    turned[0x0112] = (number // 8) % 8 + 1
    transparent = image.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    match number % 8:
        case 0:
            image.save(path.with_suffix(".jpg"), quality=90)
        case 1:
            image.save(path.with_suffix(".png"))
        case 2:
            image.convert("L").save(path.with_suffix(".jpg"), quality=80)
        case 3:
            transparent.save(path.with_suffix(".png"))
        case 4:
            image.save(path.with_suffix(".jpg"), quality=85, exif=turned)
        case 5:
            image.quantize(16).save(path.with_suffix(".png"))
        case 6:
            image.convert("L").save(path.with_suffix(".png"), exif=turned)
        case _:
            image.convert("CMYK").save(path.with_suffix(".jpg"), quality=95)


def of_several_kinds() -> dict[str, Tensor | list[Tensor]]:
    """Batches to take views of: the sample's, larger ones, and sizes that differ, with some odd ones among them."""
    generator = torch.Generator().manual_seed(5)

    def noise(height: int, width: int, n: int = 1) -> Tensor:
        coarse = torch.randint(0, 256, (n, 3, -(-height // 4), -(-width // 4)), generator=generator).float()
        fine = F.interpolate(coarse, (height, width), mode="bilinear")
        return (fine + torch.randint(-8, 9, fine.shape, generator=generator)).clamp(0, 255).to(torch.uint8)

    sides = [(40, 60), (96, 96), (33, 32), (120, 31), (28, 28), (1, 1), (3, 90), (90, 2), (224, 180)]
    sample: Tensor = torch.stack(list(stepclr.open_images("sample:train").read(range(6))))
    return {"sample": sample, "100x140": noise(100, 140, 4), "mixed": [noise(*side)[0] for side in sides]}


# The cases: each yields entries


Case = Callable[[Work], Iterator[Entry]]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Note a case under this name."""

    def note(function: Case) -> Case:
        CASES[name] = function
        return function

    return note


def pretraining(name: str, source: object = "sample:train", **changes: object) -> None:
    """Note a case that pretrains with the options of SMALL, some of them changed."""

    def run(work: Work) -> Iterator[Entry]:
        yield from results(work.pretrain(source(work) if callable(source) else source, **changes))

    CASES[f"pretrain {name}"] = run


FILES, ZIPPED, DAMAGED = attrgetter("files"), attrgetter("zipped"), attrgetter("damaged")
SHARDS, SMALL_SHARDS = attrgetter("shards"), attrgetter("small_shards")
RUN, TEACHER = attrgetter("run"), attrgetter("teacher")


def encoder_file(work: Work) -> Path:
    """The encoder of a run, as a file."""
    return work.run / "encoder.safetensors"


for _loss, _precision, _views in itertools.product(LOSSES, ("fp32", "bf16"), (2, 4)):
    pretraining(f"{_loss} {_precision} {_views} views", loss=_loss, precision=_precision, views=_views)
for _precision, _views in itertools.product(("fp32", "bf16"), (1, 4)):
    pretraining(
        f"distill {_precision} {_views} views",
        "sample:unlabeled",
        loss="distill",
        teacher=TEACHER,
        precision=_precision,
        views=_views,
        head=None,
        temperature=1.0,
    )
for _policy in POLICIES:
    pretraining(f"policy {_policy}", policy=_policy, epochs=1, limit=64)
pretraining("defaults", epochs=1, limit=64, stem=None, head=None, precision=None)
pretraining("resnet18 fp32", encoder="resnet18", epochs=1, limit=64)
pretraining("resnet18 bf16", encoder="resnet18", head=None, epochs=1, limit=64, precision="bf16")
pretraining("resnet18, stem imagenet", encoder="resnet18", stem="imagenet", epochs=1, limit=64, size=64)
pretraining("vision transformer", encoder="test_vit", stem="own", optimizer="adamw", size=32)
pretraining("one view, cross-entropy", loss="cross-entropy", views=1)
pretraining("temperature 0.02", temperature=0.02)
pretraining("supcon temperature 0.1", loss="supcon", temperature=0.1)
pretraining("recipe sample", recipe="sample", epochs=1, precision=None, stem=None, encoder=None, head=None)
pretraining("without labels, monitored", "sample:unlabeled", monitor="sample:train")
pretraining("without labels, not monitored", "sample:unlabeled", precision="bf16")
pretraining("three classes", classes="Bag,Coat,Dress", epochs=1)
pretraining("another seed", seed=3)
pretraining("batch above the images", limit=20, batch_size=64)
pretraining("every checkpoint kept", epochs=5, keep_every=1, limit=64)
pretraining("profiled", profile=True, epochs=4)
pretraining("size 96", size=96, epochs=1, limit=64)
pretraining("size 96 bf16 4 views", size=96, epochs=1, limit=64, views=4, precision="bf16")
pretraining("strength a view, blur, area", strength="0.3,1.2", blur=0.7, min_area=0.4)
pretraining("warp", policy="simaugment", warp=0.9, blur=0.4)
pretraining("micro-batch 8", micro_batch=8)
pretraining("micro-batch 8 bf16", micro_batch=8, precision="bf16")
pretraining("micro-batch 5 supcon 4 views bf16", micro_batch=5, loss="supcon", views=4, precision="bf16")
pretraining("micro-batch 8 cross-entropy", micro_batch=8, loss="cross-entropy")
pretraining("checkpoint-activations", checkpoint_activations=True)
pretraining("checkpoint-activations bf16, micro-batch", checkpoint_activations=True, micro_batch=8, precision="bf16")
for _optimizer, _precision in itertools.product(("sgd", "lars", "adamw"), ("fp32", "bf16")):
    pretraining(f"optimizer {_optimizer} {_precision}", optimizer=_optimizer, precision=_precision, epochs=3)
pretraining("lars, rate and decay given", optimizer="lars", lr=0.7, weight_decay=1e-3, warmup=1.5, epochs=4)
pretraining("lr-scaling sqrt", lr_scaling="sqrt")
pretraining("lr-scaling sqrt lars", lr_scaling="sqrt", optimizer="lars")
pretraining("progressive", progressive=True, epochs=4, size=32)
pretraining("progressive micro-batch bf16", progressive=True, epochs=3, size=48, micro_batch=8, precision="bf16")
pretraining("normalize-h", normalize_h=True)
pretraining("normalize-h supcon bf16", normalize_h=True, loss="supcon", precision="bf16")
pretraining("head of three layers", head="32-32-16")
pretraining("linear-epochs nt_xent", linear_epochs=2)
pretraining("linear-epochs supcon bf16", loss="supcon", linear_epochs=2, precision="bf16")
pretraining("weights of a run", weights=RUN, epochs=1)
pretraining("weights of a file", weights=encoder_file, epochs=1, head="24-8")
pretraining("balanced supcon", FILES, loss="supcon", balanced=True, size=32, classes="cat,dog,owl", batch_size=12)
pretraining("balanced cross-entropy", FILES, loss="cross-entropy", balanced=True, size=32, batch_size=12)
pretraining("files", FILES, size=32, batch_size=16)
pretraining("files, mixed labels, supcon bf16", FILES, loss="supcon", size=32, batch_size=16, precision="bf16")
pretraining("files at the default size", FILES, epochs=1, batch_size=6, limit=12)
pretraining("files, decoded again each epoch", FILES, size=32, batch_size=16, cache_gib=1e-6)
pretraining("files, torch renderer", FILES, size=48, batch_size=16, policy="stacked")
pretraining("a zip", ZIPPED, size=32, batch_size=16)
pretraining("a damaged file", DAMAGED, size=32, batch_size=16)
pretraining("shards", SHARDS, size=32, batch_size=16)
pretraining("shards, two classes, bf16", SHARDS, size=32, batch_size=8, classes="dog,owl", precision="bf16")
pretraining("shards of reduced images", SMALL_SHARDS, size=20, batch_size=16)


@case("view keys")
def _(_work: Work) -> Iterator[Entry]:
    for seed, epoch in ((0, 0), (0, 7), (1, 0), (12345, 99)):
        yield f"seed {seed}, epoch {epoch}", checksum(stepclr.view_keys(seed, epoch, range(1000)))
    yield "of an array", checksum(stepclr.view_keys(3, 2, np.array([5, 0, 2**40])))


def views_by(renderer: Literal["numba", "torch"], policies: Sequence[str]) -> None:
    """Note a case for each policy: its views by this renderer, of batches of several kinds and sizes."""
    for policy in policies:

        def take(_work: Work, policy: str = policy) -> Iterator[Entry]:
            for (name, batch), size in itertools.product(of_several_kinds().items(), (28, 32, 96)):
                views = stepclr.Views(policy, size, renderer=renderer)
                yield f"{name} at {size}", checksum(views(batch, stepclr.view_keys(0, 1, range(len(batch)))))

        CASES[f"views {renderer} {policy}"] = take


views_by("numba", POLICIES[:4])
views_by("torch", POLICIES)
views_by("numba", DOMAINS)
views_by("torch", DOMAINS)


@case("views with options")
def _(_work: Work) -> Iterator[Entry]:
    batches = of_several_kinds()
    some: dict[str, dict[str, Any]] = {
        "strength a view": {"strength": (0.2, 0.9, 1.5), "views": 3, "blur": 1.0, "min_area": 0.5},
        "bicubic warp": {"policy": "simaugment", "warp": 1.0, "interpolation": "bicubic"},
        "bilinear": {"interpolation": "bilinear", "views": 1, "min_area": 0.02},
    }
    renderers: tuple[Literal["numba", "torch"], ...] = ("numba", "torch")
    for renderer, (name, batch) in itertools.product(renderers, batches.items()):
        for label, options in some.items():
            views = stepclr.Views(size=40, renderer=renderer, **options)
            keys = stepclr.view_keys(9, 0, range(len(batch)))
            yield f"{label}, {renderer}, {name}", checksum(views(batch, keys))
    large = stepclr.Views(size=224, renderer="numba")
    yield "size 224", checksum(large(batches["mixed"], stepclr.view_keys(0, 0, range(len(batches["mixed"])))))
    for policy in POLICIES:
        yield f"renderer of {policy}", stepclr.Views(policy, 32).renderer


@case("sheets of views")
def _(work: Work) -> Iterator[Entry]:
    few = ("--rows", 4, "--pairs", 2)
    for policy in (*POLICIES, "all"):
        out = work.place(".png")
        command("views", "sample:unlabeled", "--out", out, "--policy", policy, *few)
        yield policy, pixels(out)
    for label, words in (
        ("three views", ("--views", 3, "--seed", 4)),
        ("options", ("--size", 64, "--strength", "0.2,1.5", "--blur", 1, "--min-area", 0.5)),
        ("warp", ("--policy", "simaugment", "--warp", 1, "--size", 96)),
        ("classes", ("--classes", "owl,cat", "--size", 48)),
    ):
        out = work.place(".png")
        command("views", work.files, "--out", out, *few, *words)
        yield f"files, {label}", pixels(out)


def loss_and_gradient(loss: Callable[..., Tensor], z: Sequence[Tensor], *rest: Any) -> str:
    """A loss and its gradient at each of its projections."""
    leaves = [view.clone().requires_grad_() for view in z]
    value = loss(leaves, *rest)
    value.backward()
    return f"{value.item()!r}; {checksum_of_all(checksum(leaf.grad) for leaf in leaves if leaf.grad is not None)}"


def nt_xent(z: list[Tensor], tau: float) -> Tensor:
    """NT-Xent of a list of views."""
    return stepclr.nt_xent(z[0], z[1] if len(z) == 2 else z[1:], tau)


def supcon(z: list[Tensor], tau: float, labels: Tensor) -> Tensor:
    """SupCon of a list of views."""
    return stepclr.supcon(z[0], z[1:], labels, tau)


def contrastive(z: list[Tensor], tau: float, groups: Tensor) -> Tensor:
    """The loss that both are, of a list of one."""
    return stepclr.contrastive(z[0], groups, tau)


@case("losses")
def _(_work: Work) -> Iterator[Entry]:
    generator = torch.Generator().manual_seed(1)
    kinds = (torch.float32, torch.float64, torch.bfloat16)
    for n, d in ((6, 8), (40, 16), (700, 128)):
        z = torch.randn(3, n, d, generator=generator, dtype=torch.float64) + 0.3
        labels = torch.randint(-1, 5, (n,), generator=generator)
        groups = torch.randint(-1, 20, (n,), generator=generator)
        for kind, tau in itertools.product(kinds, (0.5, 0.1, 0.02)):
            what = f"{kind}, n {n}, temperature {tau}".removeprefix("torch.")
            views = list(z.to(kind))
            for v in (2, 3):
                yield f"nt_xent, {v} views, {what}", loss_and_gradient(nt_xent, views[:v], tau)
            yield f"supcon out, {what}", loss_and_gradient(supcon, views, tau, labels)
            yield f"contrastive out, {what}", loss_and_gradient(contrastive, views[:1], tau, groups)
    alone = [torch.randn(6, 4, generator=generator)]
    yield "no positive", loss_and_gradient(contrastive, alone, 0.5, torch.arange(6))


def passes(module: torch.nn.Module, x: Tensor) -> Iterator[Entry]:
    """What a module makes of x as it trains and afterwards, its gradients, and its weights and buffers."""
    module.train()
    out = module(x)
    out.float().square().sum().backward()
    yield "training", checksum(out)
    yield "gradients", checksum_of_all(checksum(p.grad) for p in module.parameters() if p.grad is not None)
    module.eval()
    with torch.inference_mode():
        yield "eval", checksum(module(x))
    yield "state", checksum_of_all(f"{name} {checksum(tensor)}" for name, tensor in sorted(module.state_dict().items()))


@case("projection heads")
def _(_work: Work) -> Iterator[Entry]:
    for layers in (2, 3):
        torch.manual_seed(0)
        head = stepclr.ProjectionHead(96, 64, 16, layers)
        yield from under(f"{layers} layers", passes(head, torch.randn(24, 96)))


@case("encoders")
def _(_work: Work) -> Iterator[Entry]:
    for name, stem, size in (
        ("test_resnet", "small-stride2", 28),
        ("test_resnet", "small", 32),
        ("test_resnet", "imagenet", 96),
        ("test_resnet", "own", 64),
        ("test_resnet", "auto", 100),
        ("resnet18", "auto", 28),
        ("resnet18x2", "small-stride2", 16),
        ("resnet50", "imagenet", 64),
        ("test_vit", "own", 32),
        ("test_efficientnet", "own", 48),
    ):
        for normalize, bf16 in ((False, False), (True, False), (False, True)):
            torch.manual_seed(0)
            encoder = stepclr.build_encoder(name, stem, size=size, normalize_h=normalize)
            x = torch.rand(4, 3, size, size).contiguous(memory_format=torch.channels_last)
            encoder.to(memory_format=torch.channels_last)
            what = f"{name}, stem {stem}, {size} px{', normalized' * normalize}{', bf16' * bf16}"
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                yield from under(what, passes(encoder, x))


@case("load_encoder and preprocess")
def _(work: Work) -> Iterator[Entry]:
    images = [image for _, image in drawn_images(6)]
    for name, path in (("run", work.run), ("file", encoder_file(work)), ("96 px", work.pretrain(size=96, epochs=1))):
        encoder = stepclr.load_encoder(path).eval()
        x = encoder.preprocess(images)
        yield f"{name}: x", checksum(x)
        yield f"{name}: x of an array", checksum(encoder.preprocess(np.array(images[0])))
        with torch.inference_mode():
            yield f"{name}: h", checksum(encoder(x))


def read_all(source: Any, **options: Any) -> Iterator[Entry]:
    """What `open_images` gives: pixels of each image, labels, classes."""
    images = stepclr.open_images(source, **options)
    yield "pixels", checksum_of_all(checksum(image) for image in images.read(range(len(images))))
    yield "labels", np.asarray(images.labels).tolist() if len(images) < 200 else checksum(torch.tensor(images.labels))
    yield "classes", list(images.classes)


@case("open_images")
def _(work: Work) -> Iterator[Entry]:
    for split in ("train", "test", "unlabeled"):
        yield from under(split, read_all(f"sample:{split}"))
        yield from under(f"{split}, limit", read_all(f"sample:{split}", limit=50))
    yield from under("classes", read_all("sample:train", classes=["Coat", "Bag"], limit=20))
    for name, source in (("files", work.files), ("zip", work.zipped), ("shards", work.shards)):
        yield from under(name, read_all(source))
        yield from under(f"{name}, classes", read_all(source, classes="owl,cat"))
    yield from under("small shards", read_all(work.small_shards))
    array: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (9, 12, 10, 3), dtype=np.uint8)
    yield from under("array", read_all((array, np.array([0, 1, -1] * 3))))
    yield from under("gray array", read_all(array[..., 0]))


@case("embed")
def _(work: Work) -> Iterator[Entry]:
    for name, run, precision in itertools.product(("sample", "files"), ("run", "bf16"), ("fp32", "bf16")):
        source = work.files if name == "files" else "sample:test"
        out = work.place(".npz")
        few = () if name == "files" else ("--limit", 80)
        command("embed", getattr(work, run), source, "--out", out, "--precision", precision, *few)
        yield from under(f"{name}, {run}, {precision}", embeddings(out))
    out = work.place(".npz")
    command("embed", work.run, work.shards, "--out", out, "--classes", "dog,owl")
    yield from under("shards, two classes", embeddings(out))
    yield "in python", checksum(torch.from_numpy(stepclr.embed(work.run, work.zipped)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield "a damaged file", checksum(torch.from_numpy(stepclr.embed(work.run, work.damaged)).nan_to_num(-1))
    out = work.place(".npz")
    command("embed", work.pretrain(encoder="resnet18", epochs=1, limit=64), "sample:test", "--out", out, "--limit", 32)
    yield from under("resnet18", embeddings(out))


def evaluated(work: Work, run: Path, *words: object, test: object = "sample:test") -> list[dict[str, Any]]:
    """The rows of an evaluation of a run on the sample."""
    run = work.copy(run)
    command("evaluate", run, "--train", "sample:train", "--test", test, *words)
    return scores(run / "evaluation.json")


@case("evaluate linear, knn, pixels, random")
def _(work: Work) -> Iterator[Entry]:
    yield "fp32", evaluated(work, work.run, "--labels-per-class", "1,5", "--draws", 2)
    yield "bf16", evaluated(work, work.bf16, "--labels-per-class", "3", "--draws", 2, "--seed", 4)


@case("evaluate scratch")
def _(work: Work) -> Iterator[Entry]:
    few = ("--labels-per-class", 4, "--draws", 1, "--probe", "knn", "--baselines", "scratch", "--scratch-steps", 6)
    yield "fp32", evaluated(work, work.run, *few)
    yield "bf16", evaluated(work, work.bf16, *few)


@case("evaluate finetune")
def _(work: Work) -> Iterator[Entry]:
    few = ("--labels-per-class", 1, "--draws", 1, "--probe", "knn", "--baselines", "none", "--finetune")
    yield "bf16", evaluated(work, work.bf16, *few)


@case("evaluate files and chosen classes")
def _(work: Work) -> Iterator[Entry]:
    run = work.pretrain(classes="Bag,Coat,Dress", epochs=1)
    yield "three classes", evaluated(work, run, "--labels-per-class", "all")
    run = work.copy(work.run)
    command("evaluate", run, "--train", work.files, "--test", work.shards, "--labels-per-class", "2,all", "--draws", 3)
    yield "files", scores(run / "evaluation.json")


def finetuned(work: Work, run: Path, *words: object) -> Iterator[Entry]:
    """Rows and classifier of a fine-tuning, and what the classifier says of new images."""
    run = work.copy(run)
    few = ("--labels-per-class", "2,5", "--draws", 2, "--epochs", 3)
    command("finetune", run, "--train", "sample:train", "--test", "sample:test", *few, *words)
    yield "rows", scores(run / "finetune.json")
    yield "classifier", weights(run / "classifier.safetensors")
    out = work.place(".csv")
    command("predict", run, "sample:unlabeled", "--out", out, "--limit", 60)
    yield "predictions", checksum_of_all(rows(out))


@case("finetune and predict")
def _(work: Work) -> Iterator[Entry]:
    lars = ("--optimizer", "lars")
    yield from under("encoder, sgd", finetuned(work, work.run))
    yield from under("encoder, lars, bf16", finetuned(work, work.bf16, *lars, "--lr", 0.3, "--batch-size", 16))
    yield from under("head.1, sgd, bf16", finetuned(work, work.bf16, "--from", "head.1", "--seed", 2))
    yield from under("head.1, lars", finetuned(work, work.run, "--from", "head.1", *lars, "--min-area", 0.5))
    yield from under("head.2, lars", finetuned(work, work.deep_head, "--from", "head.2", *lars))


@case("predict files")
def _(work: Work) -> Iterator[Entry]:
    out = work.place(".safetensors")
    command("finetune", work.copy(work.run), "--train", work.files, "--epochs", 2, "--out", out)
    yield "classifier", weights(out)
    for name, source in (("files", work.files), ("zip", work.zipped), ("shards", work.shards)):
        table = work.place(".csv")
        command("predict", out, source, "--out", table)
        yield name, checksum_of_all(rows(table))
    predictions = stepclr.predict(out, work.files)
    yield "in python", checksum(torch.from_numpy(predictions.probabilities))
    yield "classes", predictions.classes


@case("distill")
def _(work: Work) -> Iterator[Entry]:
    plain = work.pretrain(stem=None, head=None, epochs=1, limit=64)  # the stem that a student has
    for name, words in (
        ("another encoder", ("--student", "test_resnet", "--temperature", 2, "--lr", 0.2, "--seed", 1)),
        ("weights of a run", ("--student", "test_resnet", "--weights", plain, "--monitor", "sample:train")),
    ):
        out, few = work.place(), ("--epochs", 2, "--batch-size", 32, "--limit", 64)
        command("distill", work.teacher, "sample:unlabeled", "--out", out, *few, *words)
        yield from under(name, results(out))
        table = work.place(".csv")
        command("predict", out, "sample:test", "--out", table, "--limit", 40)
        yield f"{name}: predictions", checksum_of_all(rows(table))


@case("in python")
def _(work: Work) -> Iterator[Entry]:
    out = work.place()
    images = stepclr.open_images("sample:train", limit=64)
    settings: dict[str, Any] = {"encoder": "test_resnet", "batch_size": 32, "precision": "fp32", "progress": False}
    run = stepclr.pretrain(images, out=out, epochs=1, **settings)
    yield from under("pretrain", results(out))
    found = stepclr.evaluate(run, "sample:train", "sample:test", labels_per_class=2, draws=2)
    yield "evaluate", [[row.method, row.values] for row in found.rows]
    found = stepclr.finetune(out, "sample:train", "sample:test", labels_per_class=2, epochs=2)
    yield "finetune", [[row.method, row.values] for row in found.rows]
    student = work.place()
    few: dict[str, Any] = {"student": "test_resnet", "limit": 64, "epochs": 1, "batch_size": 32, "progress": False}
    stepclr.distill(out, "sample:unlabeled", student, **few)
    yield from under("distill", results(student))
    array: NDArray[np.uint8] = np.random.default_rng(3).integers(0, 256, (40, 24, 24, 3), dtype=np.uint8)
    arrays = work.place()
    stepclr.pretrain((array, np.arange(40) % 3), out=arrays, loss="supcon", epochs=2, **settings | {"batch_size": 16})
    yield from under("pretrain on an array", results(arrays))


@case("resume")
def _(work: Work) -> Iterator[Entry]:
    for name, changes in (
        ("sgd fp32", {}),
        ("lars bf16 micro-batch", {"optimizer": "lars", "precision": "bf16", "micro_batch": 8}),
        ("adamw supcon 4 views", {"optimizer": "adamw", "loss": "supcon", "views": 4}),
        ("progressive, balanced", {"progressive": True, "size": 32, "balanced": True}),
    ):
        run = work.pretrain(**changes | {"epochs": 1})
        command("pretrain", "sample:train", "--out", run, "--resume", "--epochs", 2)
        yield from under(name, results(run))


@case("resume after SIGTERM")
def _(work: Work) -> Iterator[Entry]:
    changes: Options = {"epochs": 20, "precision": "bf16", "keep_every": 5}
    whole = dict(results(work.pretrain(**changes)))
    out = work.place()
    words = ["pretrain", "sample:train", "--out", str(out), *as_words(work.options(changes))]
    child = subprocess.Popen(
        [sys.executable, "-m", "stepclr", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + PATIENCE
    while child.poll() is None and time.monotonic() < until:
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size:
            child.send_signal(signal.SIGTERM)
            break
        time.sleep(0.002)
    yield "exit code", child.wait(PATIENCE)
    yield "stopped before its end", not (out / "encoder.safetensors").exists()
    command(*words, "--resume")
    ended = dict(results(out))
    yield from ended.items()
    yield "as if never stopped", ended == whole


@case("two ranks")
def _(work: Work) -> Iterator[Entry]:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "stepclr", "pretrain")
    for name, changes in (
        ("nt_xent bf16 micro-batch 4 views", {"precision": "bf16", "micro_batch": 8, "views": 4}),
        ("supcon lars, balanced", {"loss": "supcon", "optimizer": "lars", "balanced": True, "batch_size": 26}),
    ):
        out = work.place()
        process(*launch, "sample:train", "--out", out, *as_words(work.options(changes)))
        yield from under(name, results(out))


@case("search")
def _(work: Work) -> Iterator[Entry]:
    index = work.place()
    command("embed", work.run, work.files, "--out", index)
    queries = sorted(work.files.glob("cat/*.png"))[:2]
    for name, where in (("folder", index), ("npz", work.labeled_rows)):
        printed = command("search", where, *queries, "-k", 5, "--run", work.run, "--out", work.place(".png"))
        hits = re.findall(r"(-?\d\.\d{3}).*?([^\s/]+\.(?:png|jpg))", printed)
        yield name, [list(hit) for hit in hits]


@case("find")
def _(work: Work) -> Iterator[Entry]:
    index, unlabeled = work.place(), work.place(".npz")
    command("embed", work.run, work.files, "--out", index)
    command("embed", work.run, "sample:unlabeled", "--out", unlabeled, "--limit", 80)
    for what, (name, where) in itertools.product(
        ("outliers", "duplicates", "next"),
        (("folder", index), ("npz", work.labeled_rows), ("without labels", unlabeled)),
    ):
        out = work.place(".csv")
        command("find", what, where, "-n", 12, "--out", out)
        yield f"{what}, {name}", rows(out)
    labels = work.place(".csv")
    with out.open(newline="") as file:
        told = [row[0] for row in csv.reader(file)][1:]
    labels.write_text("path,label\n" + "".join(f"{path},{'ab'[number % 2]}\n" for number, path in enumerate(told[:6])))
    command("find", "next", unlabeled, "-n", 12, "--labels", labels, "--seed", 1, "--out", out)
    yield "next, some labels given", rows(out)


@case("export")
def _(work: Work) -> Iterator[Entry]:
    for what, source in (("encoder", work.run), ("classifier", work.teacher)):
        for format in ("safetensors", "timm"):
            out = work.place(".safetensors")
            command("export", source, "--format", format, "--out", out)
            yield f"{what}, {format}", weights(out)


@case("exit codes")
def _(work: Work) -> Iterator[Entry]:
    there = work.run
    asked = ("pretrain", "evaluate", "finetune", "predict", "distill", "views", "embed")
    helps: list[list[object]] = [[name, "--help"] for name in asked]
    calls: tuple[list[object], ...] = (
        ["--version"],
        ["--help"],
        [],
        ["pretain"],
        *helps,
        ["pretrain", "sample:train"],
        ["pretrain", "sample:trian", "--out", work.place()],
        ["pretrain", "no/such/folder", "--out", work.place()],
        ["pretrain", "sample:train", "--out", there],
        ["pretrain", "sample:train", "--out", work.place(), "--policy", "simclear"],
        ["pretrain", "sample:train", "--out", work.place(), "--loss", "ntxent"],
        ["pretrain", "sample:unlabeled", "--out", work.place(), "--loss", "supcon", "--limit", 64],
        ["pretrain", "sample:train", "--out", work.place(), *as_words(work.options({"lr": 1e30, "epochs": 4}))],
        ["evaluate", there, "--train", "sample:unlabeled", "--test", "sample:test"],
        ["evaluate", work.place(), "--train", "sample:train", "--test", "sample:test"],
        ["predict", there, "sample:test", "--out", work.place(".csv")],
        ["embed", there, "sample:test", "--out", work.place(".xyz")],
        ["find", "outlier", work.labeled_rows],
        ["export", there, "--format", "onyx", "--out", work.place()],
        ["compare", there],
        ["report", work.copy(there)],
    )
    for words in calls:
        shown = " ".join("PATH" if isinstance(word, Path) else str(word) for word in words)
        yield f"stepclr {shown}", exit_code(*words)[0]


# Recording and comparing


def record(out: Path, only: str) -> int:
    """Run the cases and write their entries as JSON; 1 if a case failed."""
    torch.set_num_threads(1)
    entries: dict[str, object] = {}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="same-results-") as folder:
        for name in ("STEPCLR_CACHE", "STEPCLR_DATA", "STEPCLR_KERNELS"):
            os.environ[name] = str(Path(folder) / name.lower())
        work = Work(Path(folder))
        print(f"{stepclr.__file__}: {len(chosen(only))} cases")
        began = time.monotonic()
        for name, function in chosen(only).items():
            start = time.monotonic()
            torch.manual_seed(0)
            try:
                found = {f"{name} / {entry}": value for entry, value in function(work)}
            except Exception as error:  # whatever it is, the other cases continue
                found = {name: f"error: {type(error).__name__}: {error}".replace(folder, "...")}
                failed += 1
            entries |= found
            word = f"FAILED, {found[name]}" if name in found else f"{len(found)} entries"
            print(f"{time.monotonic() - start:6.1f} s  {name}: {word}", flush=True)
    out.write_text(json.dumps(entries, indent=1) + "\n")
    spent = time.monotonic() - began
    print(f"{out}: {len(entries)} entries, {failed} cases failed, {spent:.0f} s")
    return int(failed > 0)


def compare(before: Path, after: Path, only: str) -> int:
    """Print every entry that differs or is missing, or is of a case that failed; 1 if there is any."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    names = [name for name in dict.fromkeys([*old, *new]) if only in name]
    wrong = 0
    for name in names:
        left, right = (json.dumps(side[name]) if name in side else "(missing)" for side in (old, new))
        if left != right or left.startswith('"error: '):
            wrong += 1
            print(f"{name}\n  before: {shortened(left)}\n  after:  {shortened(right)}")
    print(f"{len(names)} entries, {wrong} of them differ, are missing or failed")
    return int(wrong > 0 or not names)


def shortened(text: str, most: int = 500) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else f"{text[:most]} ..."


def chosen(only: str) -> dict[str, Case]:
    """The cases with this text in their name."""
    return {name: function for name, function in CASES.items() if only in name}


def main() -> int:
    """Read the arguments, and record, compare or list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.json", help="file to write")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE.json", "AFTER.json"))
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases with this text in their name")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    arguments = parser.parse_args()
    if arguments.list:
        print(*chosen(arguments.only), sep="\n")
        return 0
    if arguments.compare:
        before, after = arguments.compare
        return compare(before, after, arguments.only)
    if arguments.out is None or not chosen(arguments.only):
        parser.error("name a file to write, and cases that there are" if arguments.only else "name a file to write")
    return record(arguments.out, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
