"""Step 1, data: a source -> `ImageSet` -> uint8 batch `[N, 3, H, W]` and labels `[N]` (-1: none).

SimCLR (section 2) learns from pictures alone; labels are carried along for evaluation, and for the supervised loss.

    picture.py   one picture's bytes -> upright RGB
    stores.py    where pictures lie (files, arrays, memory), and the threads that read them
    disk.py      folders, files written whole, what is remembered of files' content
    cache.py     decoded pictures in one memory-mapped file
    images.py    `ImageSet`
    folders.py   folders and zips
    memory.py    arrays and torch Datasets
    named.py     the bundled sample; STL-10, CIFAR and Fashion-MNIST through torchvision
    shards.py    tar shards, here or afar; tars.py: one pass over those that came without an index
    shard_index.py   what lies where in shards: 40 bytes a picture, read where needed
    shard_cache.py   shards from afar: fetched, verified, kept up to a limit
    order.py     the order in which an epoch meets pictures in shards
    packing.py   `pack`: any source -> shards
    sources.py   `open_images`: any of these
"""

from stepclr.data.images import ImageSet
from stepclr.data.packing import pack
from stepclr.data.picture import upright_rgb
from stepclr.data.sources import Source, open_images

__all__ = ["ImageSet", "Source", "open_images", "pack", "upright_rgb"]
