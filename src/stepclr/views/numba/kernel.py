"""One view after the other, each from its image's bytes to its place in the batch."""

from typing import no_type_check

import numba

from stepclr.views.numba.crop import crop_memory, crop_resize_flip
from stepclr.views.numba.ops import blur, blur_memory, color_jitter, to_grey, warp
from stepclr.views.numba.simd import LANES, OPTIONS, aligned, bytes_at, up

__all__ = ["ARGUMENTS", "OPTIONS", "render_views"]

JITTER, GREY, WARP, BLUR = range(4)  # the last two make a new image of an old one
REAL, WHOLE, FLAG = numba.types.float32, numba.types.int64, numba.types.boolean
ARGUMENTS = (
    WHOLE, WHOLE, REAL[::1], WHOLE, FLAG, WHOLE, WHOLE[::1], WHOLE[:, ::1],
    WHOLE[:, ::1], FLAG[::1], WHOLE[::1], WHOLE[::1], numba.types.float64[:, ::1],
)  # fmt: skip


@no_type_check
def render_views(first, last, out, size, cubic, radius, places, sides, boxes, flips, kinds, columns, table):
    """Views first .. last of all in out, `[views, 3, size, size]` in one row.

    radius: of the blur's kernel. places, sides: address, and height and width, of each view's image. kinds: the ops
    in turn; columns: where the parameters of each begin in a view's row of the table, with whether it happens at all.
    """
    n = size * size
    gap = up(n) + LANES
    room, line = aligned(6 * gap), blur_memory(size, radius)
    memory = crop_memory(boxes[first:last], size)
    in_place = size % LANES == 0  # no vector reaches past a view's end then: out itself can be worked on
    for view in range(first, last):
        drawn, end = table[view], view * 3 * n
        moves = 0
        for op in range(len(kinds)):
            moves += kinds[op] >= WARP and drawn[columns[op]] > 0
        x, p, plane, y, q, y_plane = room, 0, gap, room, 3 * gap, gap
        if in_place:
            y, q, y_plane = out, end, n
            if moves % 2 == 0:
                x, p, plane, y, q, y_plane = y, q, y_plane, x, p, plane
        image = numba.carray(bytes_at(places[view]), (3, sides[view, 0], sides[view, 1]))
        crop_resize_flip(image, boxes[view], flips[view], size, cubic, memory, x, p, plane)
        for op in range(len(kinds)):
            own = drawn[columns[op] :]
            if own[0] > 0 and kinds[op] == JITTER:
                color_jitter(x, p, plane, n, own)
            elif own[0] > 0 and kinds[op] == GREY:
                to_grey(x, p, plane, n)
            elif own[0] > 0:
                if kinds[op] == WARP:
                    warp(x, p, plane, size, own, y, q, y_plane)
                else:
                    blur(x, p, plane, size, own[0], radius, line, y, q, y_plane)
                x, p, plane, y, q, y_plane = y, q, y_plane, x, p, plane
        if not in_place:
            for c in range(3):
                out[end + c * n : end + (c + 1) * n] = x[p + c * plane : p + c * plane + n]
