"""An index: embeddings with paths, labels and thumbnails, and the images in it that are most similar to a query.

`table.py` keeps a folder's LanceDB table in step with its source, in the columns of `rows.py`; `index.py` reads what
`embed` wrote; `nearest.py` finds rows, and measures how often an approximate search is right; `queries.py` goes from an
image to those most like it.
"""
