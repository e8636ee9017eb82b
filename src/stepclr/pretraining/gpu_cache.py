"""Images on a GPU: all of them once where they fit into its memory, else each batch ahead of its step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from stepclr.data.images import ImageBatch, ImageSet
from stepclr.data.stores import Pixels
from stepclr.device import to_device

SHARE = 0.3  # of the GPU's free memory may hold images; the rest is for the network
CHUNK = 64 * 2**20  # bytes that are uploaded at a time


@dataclass(eq=False)
class Resident(Pixels):
    """Images of one size in a device's memory, where batches are assembled too; `array` is empty."""

    pixels: UInt8[Tensor, "n channels h w"]

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        chosen = self.pixels.index_select(0, to_device(rows, self.pixels.device))
        return chosen.expand(-1, self.reading.bands, -1, -1).contiguous()


def on_device(images: ImageSet, device: torch.device, budget: int | None = None) -> ImageSet:
    """The same set with its images in the device's memory, or `images` itself where they do not fit.

    They fit if they are decoded in one array of at most `budget` bytes (default: `room`).
    """
    store = images.store
    array = store.as_array()
    if array is None or isinstance(store, Resident) or images.short_side is not None:
        return images
    shape = (len(images), *array.shape[1:])
    each = int(np.prod(shape[1:]))
    if len(images) * each > (room(device) if budget is None else budget):
        return images
    pixels = torch.empty(shape, dtype=torch.uint8, device=device)
    step = max(1, CHUNK // each)
    for start in range(0, len(images), step):
        rows = images.rows[start : start + step]
        pixels[start : start + step] = torch.from_numpy(array[rows]).to(device)
    return replace(images, store=Resident(array[:0], pixels, reading=store.reading), rows=np.arange(len(images)))


def room(device: torch.device) -> int:
    """Bytes for images: SHARE of the free memory of a GPU; 0 on a CPU, where they are in memory already.

    What torch has reserved and no longer uses, such as that of a trial before the run, is free too.
    """
    if device.type != "cuda":
        return 0
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(SHARE * (torch.cuda.mem_get_info(device)[0] + unused))


def upload(images: ImageBatch, device: torch.device) -> Callable[[], ImageBatch]:
    """Start to copy a batch to a GPU, from any thread; the result hands it to the current stream.

    The copy has a stream of its own and comes from page-locked memory: neither host nor GPU waits for it.
    """
    flat, shapes = joined(images)
    stream = _stream(device)
    with torch.cuda.stream(stream):
        there = flat.pin_memory().to(device, non_blocking=True)
        copied = stream.record_event()

    def receive() -> ImageBatch:
        here = torch.cuda.current_stream(device)
        here.wait_event(copied)
        there.record_stream(here)  # or its memory might be written again while `here` still reads it
        return parted(there, shapes, isinstance(images, Tensor))

    return receive


@cache
def _stream(device: torch.device) -> Any:
    """One stream for all epochs, since each stream has its own memory pool."""
    return torch.cuda.Stream(device)


def joined(images: ImageBatch) -> tuple[UInt8[Tensor, " bytes"], list[torch.Size]]:
    """The images concatenated, so that one copy is enough, and their shapes."""
    if isinstance(images, Tensor):
        return images.flatten(), [images.shape]
    return torch.cat([image.flatten() for image in images]), [image.shape for image in images]


def parted(flat: UInt8[Tensor, " bytes"], shapes: Sequence[torch.Size], whole: bool) -> ImageBatch:
    """The inverse of `joined`, without copying: a batch if it was `whole`, else a list."""
    parts = [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
    return parts[0] if whole else parts
