"""Tar shards: more images than fit on a disk or in a cache, here or at any fsspec URL.

`store.py` reads them as an image set; `index.py` says where each image lies, 40 bytes each; `cache.py` keeps fetched
shards, verified, up to a limit; `tars.py` looks through tars that come without an index; `packing.py` writes shards.
"""
