"""One view after the other, each from its image's bytes to its place in the batch. Layout: see the package."""

from typing import no_type_check

import numba

from stepclr.views.numba.crop import crop_memory, crop_resize_flip
from stepclr.views.numba.ops import blur, blur_memory, change_levels, color_jitter, erase, rotate, to_gray, turn, warp
from stepclr.views.numba.simd import LANES, OPTIONS, aligned, bytes_at, kernel, up

__all__ = ["ENTRIES", "OPTIONS"]

JITTER, GRAY, LEVELS, ERASE, WARP, BLUR, TURN, ROTATE = range(8)  # from WARP on, they make a new view of an old one
REAL, WHOLE, FLAG = numba.types.float32, numba.types.int64, numba.types.boolean
ARGUMENTS = (
    WHOLE, WHOLE, REAL[::1], WHOLE, FLAG, WHOLE, WHOLE[::1], WHOLE[:, ::1],
    WHOLE[:, ::1], FLAG[::1], WHOLE[::1], WHOLE[::1], numba.types.float64[:, ::1],
)  # fmt: skip


@no_type_check
def render_views(first, last, out, size, cubic, radius, addresses, sides, boxes, flips, kinds, columns, table):
    """Render views first to last of all views into out, which is `[views, 3, size, size]` as a flat array.

    cubic: whether the crop is bicubic. radius: of the blur's kernel. addresses, sides, boxes, flips: of each view, its
    image's address, its (height, width), the box to crop, and whether to mirror it. kinds: JITTER, GRAY, ...
    for each op in turn. columns: where the parameters of each op begin in a view's row of the table.
    """
    n = size * size
    gap = up(n) + LANES
    # Memory for two views, for a line of the blur, and for the crop.
    room, line = aligned(6 * gap), blur_memory(size, radius)
    memory = crop_memory(boxes[first:last], size)
    in_place = size % LANES == 0  # no vector reaches past the end of a view then, so that `out` can be worked on
    for view in range(first, last):
        params, place = table[view], view * 3 * n
        # Ops that make a new view go back and forth between two places; the last one must write into `out`.
        moves = 0
        for op in range(len(kinds)):
            moves += kinds[op] >= WARP and params[columns[op]] > 0
        x, p, plane, y, q, y_plane = room, 0, gap, room, 3 * gap, gap
        if in_place:
            y, q, y_plane = out, place, n
            if moves % 2 == 0:
                x, p, plane, y, q, y_plane = y, q, y_plane, x, p, plane
        image = numba.carray(bytes_at(addresses[view]), (3, sides[view, 0], sides[view, 1]))
        crop_resize_flip(image, boxes[view], flips[view], size, cubic, memory, x, p, plane)
        for op in range(len(kinds)):
            of_op = params[columns[op] :]
            if of_op[0] > 0 and kinds[op] < WARP:
                change(kinds[op], x, p, plane, size, of_op)
            elif of_op[0] > 0:
                remake(kinds[op], x, p, plane, size, of_op, radius, line, y, q, y_plane)
                x, p, plane, y, q, y_plane = y, q, y_plane, x, p, plane
        if not in_place:
            for c in range(3):
                out[place + c * n : place + (c + 1) * n] = x[p + c * plane : p + c * plane + n]


@kernel
@no_type_check
def change(kind, x, p, plane, size, params):
    """Apply an op that works on each pixel in its place."""
    if kind == JITTER:
        color_jitter(x, p, plane, size * size, params)
    elif kind == GRAY:
        to_gray(x, p, plane, size * size)
    elif kind == LEVELS:
        change_levels(x, p, plane, size * size, params[0], params[1])
    else:
        erase(x, p, plane, size, params[1:5])


@kernel
@no_type_check
def remake(kind, x, p, plane, size, params, radius, line, y, q, y_plane):
    """Apply an op that makes a new view of an old one, from x to y."""
    if kind == WARP:
        warp(x, p, plane, size, params, y, q, y_plane)
    elif kind == BLUR:
        blur(x, p, plane, size, params[0], radius, line, y, q, y_plane)
    elif kind == TURN:
        turn(x, p, plane, size, params[0], y, q, y_plane)
    else:
        rotate(x, p, plane, size, params[1], params[2], y, q, y_plane)


ENTRIES = ((render_views, ARGUMENTS),)
