"""Crop, resize and flip of the Numba renderer, as `reference.crop_resize_flip`, in the cheaper order of directions.

Rows of the box are read once, top to bottom, and kept as long as an output row needs them. Layout of the arguments: see
the package; `i, plane, stride` or `first, line_plane` say the same of the pixels that are read.
"""

import math
from typing import no_type_check

import numpy as np

from stepclr.views.numba.simd import LANES, aligned, kernel, up, weighted_lanes, weighted_rows

ZERO, ONE, TWO, FOUR, WHITE = (np.float32(x) for x in (0, 1, 2, 4, 255))
NEAR, NEAR_2, FAR, FAR_2 = (np.float32(x) for x in (1.5, 2.5, -0.5, 2.5))
HUGE = np.float32(1e30)  # a bound that no pixel reaches


@kernel
@no_type_check
def filter_weight(distance, cubic):
    """Keys' cubic kernel with a = -1/2, or the triangle, at a distance in units of the filter's scale."""
    d = abs(distance)
    if cubic:
        near, far = (NEAR * d - NEAR_2) * d * d + ONE, ((FAR * d + FAR_2) * d - FOUR) * d + TWO
        return near if d < ONE else (far if d < TWO else ZERO)
    return ONE - d if d < ONE else ZERO


@kernel
@no_type_check
def reach(length, size, cubic):
    """The scale; how far the filter reaches to either side, in pixels of the image; the number of pixels in reach."""
    scale = length / size
    support = (2.0 if cubic else 1.0) * max(scale, 1.0)
    return scale, support, math.ceil(2 * support)


@kernel
@no_type_check
def row_filters(length, size, cubic, start, weights):
    """Output row r is the sum over t < taps of row start[r] + t times weights[t * size + r]. Returns taps."""
    scale, support, taps = reach(length, size, cubic)
    taps = min(length, taps)
    shrink = np.float32(1 / max(scale, 1.0))
    for r in range(size):
        start[r] = max(0, min(math.ceil((r + 0.5) * scale - support - 0.5), length - taps))
        off_center = np.float32(start[r] + 0.5 - (r + 0.5) * scale)
        total = ZERO
        for t in range(taps):
            weight = filter_weight((off_center + np.float32(t)) * shrink, cubic)
            weights[t * size + r] = weight
            total += weight
        for t in range(taps):
            weights[t * size + r] /= total
    return taps


@kernel
@no_type_check
def column_filters(length, size, cubic, shift, taps, weights):
    """Output column j of vector v is a weighted sum of columns j + shift[v] + t, t < taps[v], divided by 255.

    Within a vector, outputs advance nearly as fast as columns, so that all have nearly the same reach relative to j.
    The vector uses their common reach, with weight 0 where an output reaches less far. The weights are ordered by
    vector, then by tap, then by output.
    """
    scale, support, full_taps = reach(length, size, cubic)
    shrink = np.float32(1 / max(scale, 1.0))
    off_center, total = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    k = 0
    for v in range(up(size) // LANES):
        j, last = v * LANES, min((v + 1) * LANES, size) - 1
        low = math.ceil((j + 0.5) * scale - support - 0.5) - j
        low_last = math.ceil((last + 0.5) * scale - support - 0.5) - last
        shift[v] = min(low, low_last)
        taps[v] = abs(low - low_last) + full_taps
        for lane in range(LANES):
            off_center[lane] = np.float32(j + lane + shift[v] + 0.5 - (j + lane + 0.5) * scale)
            total[lane] = ZERO
        for t in range(taps[v]):
            row, first = weights[k + t * LANES : k + (t + 1) * LANES], j + shift[v] + t
            for lane in range(LANES):
                weight = filter_weight((off_center[lane] + np.float32(t)) * shrink, cubic)
                row[lane] = weight if first + lane >= 0 and first + lane < length else ZERO
                total[lane] += row[lane]
        for lane in range(LANES):  # past the view's end there may be nothing to sum
            total[lane] = ONE / (WHITE * (total[lane] if total[lane] > ZERO else ONE))
        for t in range(taps[v]):
            row = weights[k + t * LANES : k + (t + 1) * LANES]
            for lane in range(LANES):
                row[lane] *= total[lane]
        k += taps[v] * LANES


@kernel
@no_type_check
def margin_of(width, size):
    """Floats on either side of a row that vectors may read with weight 0."""
    return up(int(LANES * (2 + width / size) + 4 * max(width / size, 1.0)))


@kernel
@no_type_check
def rows_kept(height, size):
    """Rows in memory at a time: several times what one output row sums, because they are moved when memory is full."""
    return min(height, int(16 * max(height / size, 1.0)) + 20)


@kernel
@no_type_check
def crop_memory(boxes, size):
    """Memory that `crop_resize_flip` can use for each of these boxes."""
    row_weights, weights, line, rows = 0, 0, 0, 0
    for box in range(len(boxes)):
        height, width = boxes[box, 2], boxes[box, 3]
        margin = margin_of(width, size)
        row_weights = max(row_weights, (int(4 * max(height / size, 1.0)) + 2) * size)
        weights = max(weights, 2 * margin * up(size))
        line = max(line, 3 * (2 * margin + up(width)))
        rows = max(rows, rows_kept(height, size) * 3 * (up(max(size, width)) + LANES))
    vectors = up(size) // LANES
    filters = np.empty(size, np.int64), aligned(row_weights)
    filters_along = np.empty(vectors, np.int64), np.empty(vectors, np.int64), aligned(weights)
    return filters, filters_along, aligned(line), aligned(rows)


@kernel
@no_type_check
def load_row(image, row, left, width, mirror, out, o, out_plane):
    """Copy a row of the box as floats to out, mirrored if asked."""
    for c in range(3):
        source = image[c, row, left : left + width]
        target = out[o + c * out_plane : o + c * out_plane + width]
        if mirror:
            for x in range(width):
                target[x] = np.float32(source[width - 1 - x])
        else:
            for x in range(width):
                target[x] = np.float32(source[x])


@kernel
@no_type_check
def resize_row(line, first, line_plane, filters, out, o, out_plane, low, high):
    """The columns of one row, which begins at `first`."""
    shift, taps, weights = filters
    k = 0
    for v in range(len(taps)):
        j = v * LANES
        weighted_lanes(
            out, o + j, out_plane, line, first + j + shift[v], line_plane, 1, weights, k, LANES, taps[v], low, high
        )
        k += taps[v] * LANES


@kernel
@no_type_check
def sum_rows(x, i, plane, stride, n, weights, k, step, taps, out, o, out_plane, low, high):
    """Each of n pixels becomes the sum over t < taps of weights[k + t * step] times the pixel t strides further on."""
    for j in range(0, n, LANES):
        weighted_rows(out, o + j, out_plane, x, i + j, plane, stride, weights, k, step, taps, low, high)


@kernel
@no_type_check
def crop_resize_flip(image, box, mirror, size, cubic, memory, x, p, plane):
    """The box (top, left, height, width), mirrored if asked, resized to size x size, clipped to [0, 1], into x."""
    (start, row_weights), columns, line, rows = memory
    top, left, height, width = box[0], box[1], box[2], box[3]
    taps = row_filters(height, size, cubic, start, row_weights)
    column_filters(width, size, cubic, columns[0], columns[1], columns[2])
    margin = margin_of(width, size)
    line_plane = 2 * margin + up(width)
    columns_first = 2 * height < size + width  # a sum along a row costs about twice one down a column
    row_plane = up(size) if columns_first else up(width)
    row = 3 * row_plane
    capacity = rows_kept(height, size)
    begin, end = 0, 0  # rows of the box in memory
    for r in range(size):
        # Read the rows of the box that output row r needs; if memory is full, move those still needed to its start.
        while end < start[r] + taps:
            if end - begin == capacity:
                needed = (end - start[r]) * row
                rows[:needed] = rows[capacity * row - needed : capacity * row]
                begin = start[r]
            free = (end - begin) * row
            if columns_first:
                load_row(image, top + end, left, width, mirror, line, margin, line_plane)
                resize_row(line, margin, line_plane, columns, rows, free, row_plane, -HUGE, HUGE)
            else:
                load_row(image, top + end, left, width, mirror, rows, free, row_plane)
            end += 1
        # Sum them into output row r. What is left to do is the other direction, if it did not come first.
        first, o = (start[r] - begin) * row, p + r * size
        if columns_first:
            sum_rows(rows, first, row_plane, row, size, row_weights, r, size, taps, x, o, plane, ZERO, ONE)
        else:
            sum_rows(
                rows, first, row_plane, row, width, row_weights, r, size, taps, line, margin, line_plane, -HUGE, HUGE
            )
            resize_row(line, margin, line_plane, columns, x, o, plane, ZERO, ONE)
