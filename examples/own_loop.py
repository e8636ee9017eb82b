"""SimCLR in plain PyTorch, made of stepclr's parts: images, views, an encoder, a head, a loss, and a loop of one's own.

    python examples/own_loop.py [--epochs 5] [--batch-size 128] [--workers 2] [--out encoder.safetensors]

It trains on the bundled images, a few minutes on a CPU. Every part can be replaced: by your Dataset, your network
(any nn.Module that maps [N, 3, S, S] to [N, F]) or your optimizer. On several GPUs, initialize torch.distributed and
wrap the model in DistributedDataParallel as usual: the loss contrasts the projections of all processes.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import stepclr


class ViewsOfImages(Dataset[list[Tensor]]):
    """The random views of each image; the label is not used."""

    def __init__(self, images: Dataset[tuple[Tensor, int]], transform: stepclr.SimCLRTransform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> list[Tensor]:
        image, _ = self.images[index]
        return self.transform(image)


def train(epochs: int, batch_size: int, workers: int, out: str | None = None, limit: int | None = None) -> list[float]:
    """Pretrain an encoder, and write it to the file `out`; returns the mean loss of each epoch."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = stepclr.open_images("sample:unlabeled", limit=limit)  # or "photos/", or your own Dataset
    transform = stepclr.SimCLRTransform(size=28, strength=1.0, blur=0.5, min_area=0.4)
    loader = DataLoader(ViewsOfImages(images, transform), batch_size, shuffle=True, drop_last=True, num_workers=workers)
    encoder = stepclr.build_encoder("test_resnet", stem="small-stride2", size=28)
    head = stepclr.ProjectionHead(encoder.num_features, hidden=512, out=128)
    model = nn.Sequential(encoder, head).to(device)
    criterion = stepclr.NTXentLoss(temperature=0.2)
    lr = 0.3 * batch_size / 256
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(  # a warm-up of a tenth of the steps, then a cosine
        optimizer, lr, total_steps=epochs * len(loader), pct_start=0.1, cycle_momentum=False
    )

    means = []
    for epoch in range(epochs):
        total = 0.0
        for view_i, view_j in loader:
            z_i, z_j = model(torch.cat([view_i, view_j]).to(device)).chunk(2)
            loss = criterion(z_i, z_j)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        means.append(total / len(loader))
        print(f"epoch {epoch + 1} of {epochs}: loss {means[-1]:.3f}", flush=True)
    if out:
        stepclr.save_encoder(encoder, out)  # for load_encoder, and for every command that takes a run
    return means


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out")
    options = parser.parse_args()
    train(options.epochs, options.batch_size, options.workers, options.out)
