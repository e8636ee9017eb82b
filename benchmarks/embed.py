"""The speed of `embed` in bfloat16 and of a plain float32 loop, both from JPEG files to features.

    python benchmarks/embed.py FOLDER [--encoder resnet18] [--size 96] [--count 4000]

FOLDER contains class folders of images. Both compute h of the same images with the same untrained encoder, whose
BatchNorms are moved away from their initial values. The plain loop: torchvision's ImageFolder, Resize, CenterCrop and
ToTensor, a DataLoader with two workers, the encoder's body in eval mode without gradient, batches of 256. Ours:
`stepclr.embed` with precision="bf16", opening the folder included. The two take turns, three times. At the end, the
cosine similarity of h in bfloat16 and in float32.
"""

import argparse
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms as tv
from torchvision.datasets import ImageFolder

import stepclr
from stepclr.model.files import save_encoder


def untrained(name: str, size: int) -> stepclr.Encoder:
    """An encoder whose features depend on every weight: the blocks of a new one start as the identity."""
    torch.manual_seed(0)
    encoder = stepclr.build_encoder(name, size=size)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            assert isinstance(module.running_mean, torch.Tensor)
            nn.init.normal_(module.running_mean, 0, 0.1)
    return encoder.eval()


def plain_loop(encoder: stepclr.Encoder, folder: Path, size: int, count: int) -> torch.Tensor:
    transform = tv.Compose([tv.Resize(encoder.side), tv.CenterCrop(size), tv.ToTensor()])
    files = ImageFolder(str(folder), transform)
    loader = DataLoader(Subset(files, range(min(count, len(files)))), batch_size=256, num_workers=2)
    with torch.no_grad():
        return torch.cat([encoder.body(x) for x, _label in loader])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--count", type=int, default=4000)
    given = parser.parse_args()
    encoder = untrained(given.encoder, given.size)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; torch {version('torch')}, "
        f"torchvision {version('torchvision')}, stepclr {stepclr.__version__}\n"
        f"{given.encoder}, stem {encoder.stem}, {given.size} px, the first {given.count} images"
    )

    def ours(precision: str) -> np.ndarray:
        images = stepclr.open_images(given.folder)
        return stepclr.embed(path, images.take(range(min(given.count, len(images)))), precision=precision)

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "encoder.safetensors"
        save_encoder(encoder, path)
        for turn in range(1, 4):
            begun = time.perf_counter()
            theirs = plain_loop(encoder, given.folder, given.size, given.count)
            between = time.perf_counter()
            half = ours("bf16")
            a, b = between - begun, time.perf_counter() - between
            print(f"turn {turn}: plain {len(theirs) / a:.0f} images/s, embed {len(half) / b:.0f}, ratio {a / b:.2f}")
        full = torch.from_numpy(ours("fp32"))
    alike = nn.functional.cosine_similarity(torch.from_numpy(half), full)
    loop = nn.functional.cosine_similarity(theirs, full)
    print(
        f"cosine similarity to embed in float32: bf16 mean {alike.mean():.6f}, minimum {alike.min():.6f}; "
        f"the plain loop (other resize) mean {loop.mean():.6f}"
    )


if __name__ == "__main__":
    main()
