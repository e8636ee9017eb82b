"""Step 1, data: a source -> `ImageSet` -> uint8 batch `[N, 3, H, W]` and labels `[N]` (-1: none).

Images that are not RGB keep their 1 to 16 channels from here to the encoder, where `channels` asks for it.

SimCLR (section 2) learns from images alone; labels are kept for evaluation and for the supervised loss.

    reading.py   what a user decides about reading files: value range, largest image, channels, damaged shards
    formats.py   which files are images, and why one that is not read is not
    levels.py    an image's own numbers -> 8-bit RGB, or its bands as they are
    bands.py     arrays (.npy), and TIFFs of several bands or pages
    decode.py    one image's bytes -> upright RGB
    ledger.py    what was skipped, ignored or changed under a source
    stores.py    where images are: files, arrays, memory
    recall.py    what is known about files without reading them again
    cache.py     decoded images in one memory-mapped file
    details.py   which images show the same thing, by small gray thumbnails
    copies.py    which images occur more than once, in one set or in two
    images.py    `ImageSet`, a torch `Dataset`
    folders.py   folders and zips
    joined.py    several sources as one set
    label_csv.py labels in tables
    labels.py    the classes in words, whether they are classes; labels and splits of tables, given to a set
    memory.py    arrays and torch Datasets
    named.py     the bundled sample; STL-10, CIFAR and Fashion-MNIST
    order.py     the orders in which an epoch visits the images
    shards/      tar shards, on this machine or at a URL; `pack`: any source -> shards
    sources.py   `open_images`: any of these
"""
