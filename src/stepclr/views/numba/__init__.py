"""The fused CPU renderer: the same drawn parameters as `views/reference.py`, the same pixels to 1/255, in less time.

`batch.py`: a batch's views, shared out among threads; `compiled.py`: the machine code, from the user's cache;
`kernel.py`: one view after the other, each by one thread in planes that stay in its cache; `crop.py`: crop, resize and
flip; `ops.py`: color jitter, grey, blur, warp; `simd.py`: their innermost loop.

Arithmetic is float32. A view's three channels are planes of one flat array: pixel (row, column) of channel c lies at
p + c * plane + row * size + column. Vectors of `LANES` pixels may be written past the end of a row: the next row, which
comes later, or a gap lies there. Numba's functions have no types in their signatures; it finds them itself.
"""

from stepclr.views.numba.batch import Renderer, choose_renderer, render_fused

__all__ = ["Renderer", "choose_renderer", "render_fused"]
