"""The renderer for CPUs, compiled by Numba: the pixels of `views/reference.py` to 1/255, several times as fast.

`batch.py` shares a batch's views out among threads; `kernel.py` renders one view after the other, each by one thread
in planes that stay in its cache; `crop.py` is crop, resize and flip; `ops.py` has the ops; `simd.py` is their innermost
loop.

The layout of the kernels' arguments, the same in all these files:

    x, p, plane         a view of float32 in a flat array: pixel (row, column) of channel c is
                        x[p + c * plane + row * size + column]
    y, q, y_plane       the same of the view that is written, where an op makes a new view of an old one
    size, n             side of the view; pixels of a channel, size * size
    first, last         of a range of pixels or of views; `last` is not part of it
    params              an op's parameters of one view, float64: whether it happens, then its fields, flattened

Vectors of `LANES` pixels may be written past the end of a row: the next row, which is written later, or a gap lies
there. Numba infers the types of all arguments, so that the functions have none in their signatures.
"""
