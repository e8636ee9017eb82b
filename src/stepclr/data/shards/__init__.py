"""Tar shards: more images than fit on a disk or in a cache, on this machine or at any fsspec URL.

`store.py` reads them as an image set; `index.py` knows where each image is, in 40 bytes; `cache.py` keeps fetched
shards, verified, up to a limit; `tars.py` scans tars that come without an index; `packing.py` writes shards.
"""
