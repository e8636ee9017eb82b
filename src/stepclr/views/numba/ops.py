"""Ops of the Numba renderer, as in `color.py`, `reference.py`, `warp.py`, `autoaugment.py` and `geometry.py`.

Layout of the arguments: see the package.
"""

import math
from typing import no_type_check

import numpy as np

from stepclr.views.autoaugment import EQUALIZE, POSTERIZE, SOLARIZE
from stepclr.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION
from stepclr.views.numba.crop import HUGE, sum_rows
from stepclr.views.numba.simd import aligned, kernel, up

TILE = 1024  # pixels whose three channels stay in the level-1 cache while several adjustments work on them
MAX_SIGMAS = 4.0  # the blur's taps beyond so many sigmas together weigh less than 1e-4
ZERO, ONE, TWO, THREE, FOUR, SIX, SIXTH = (np.float32(x) for x in (0, 1, 2, 3, 4, 6, 1 / 6))
WHITE = np.float32(255)
ROOT_HALF = np.float64(0.5**0.5).view(np.int64)
LOG_2, TINY = math.log(2), 1e-300
RED, GREEN, BLUE = (np.float32(x) for x in (0.2989, 0.587, 0.114))


@kernel
@no_type_check
def clip(value):
    """To [0, 1]."""
    return min(max(value, ZERO), ONE)


@kernel
@no_type_check
def luma(red, green, blue):
    """The gray level, by the weights of ITU-R 601."""
    return red * RED + green * GREEN + blue * BLUE


@kernel
@no_type_check
def channels(x, p, plane, first, last):
    """Pixels first to last of each channel: three slices of x."""
    g, b = p + plane, p + 2 * plane
    return x[p + first : p + last], x[g + first : g + last], x[b + first : b + last]


@kernel
@no_type_check
def adjust_brightness(red, green, blue, factor):
    """Multiply by the factor."""
    for channel in (red, green, blue):
        for i in range(len(channel)):
            channel[i] = min(channel[i] * factor, ONE)


@kernel
@no_type_check
def adjust_contrast(red, green, blue, factor, mean):
    """Blend with the image's mean gray level."""
    for channel in (red, green, blue):
        for i in range(len(channel)):
            channel[i] = clip(channel[i] * factor + mean * (ONE - factor))


@kernel
@no_type_check
def adjust_saturation(red, green, blue, factor):
    """Blend with each pixel's own gray level."""
    for i in range(len(red)):
        gray = luma(red[i], green[i], blue[i]) * (ONE - factor)
        red[i] = clip(red[i] * factor + gray)
        green[i] = clip(green[i] * factor + gray)
        blue[i] = clip(blue[i] * factor + gray)


@kernel
@no_type_check
def adjust_hue(red, green, blue, shift):
    """As `color.adjust_hue` without a branch: hue in sixths of a turn, from the largest channel, and back to all."""
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        value, least = max(r, max(g, b)), min(r, min(g, b))
        chroma = value - least
        safe = chroma if chroma > ZERO else ONE
        difference = g - b if value == r else (b - r if value == g else r - g)
        turn = difference / safe + (ZERO if value == r else (TWO if value == g else FOUR)) + shift * SIX
        turn -= SIX * np.floor(turn * SIXTH)
        red[i] = least + chroma * clip(abs(turn - THREE) - ONE)
        green[i] = least + chroma * clip(TWO - abs(turn - TWO))
        blue[i] = least + chroma * clip(TWO - abs(turn - FOUR))


@kernel
@no_type_check
def adjust_color(pixels, which, factor, mean):
    """One of the jitter's four adjustments, clipped to [0, 1]."""
    red, green, blue = pixels
    if which == BRIGHTNESS:
        adjust_brightness(red, green, blue, factor)
    elif which == CONTRAST:
        adjust_contrast(red, green, blue, factor, mean)
    elif which == SATURATION:
        adjust_saturation(red, green, blue, factor)
    elif which == HUE:
        adjust_hue(red, green, blue, factor)


@kernel
@no_type_check
def gray_total(red, green, blue):
    """The sum of the gray levels."""
    total = ZERO
    for i in range(len(red)):
        total += luma(red[i], green[i], blue[i])
    return total


@kernel
@no_type_check
def color_jitter(x, p, plane, n, params):
    """The four adjustments in their order: those before contrast, the mean that contrast needs, then the others.

    params: whether it happens, the four factors, the order.
    """
    total, mean = 0.0, ZERO
    for before in (True, False):
        for first in range(0, n, TILE):
            pixels = channels(x, p, plane, first, min(first + TILE, n))
            ahead = True
            for turn in range(4):
                which = int(params[5 + turn])
                ahead = ahead and which != CONTRAST
                if ahead == before:
                    adjust_color(pixels, which, np.float32(params[1 + which]), mean)
            if before:
                total += gray_total(pixels[0], pixels[1], pixels[2])
        mean = np.float32(total / n)


@kernel
@no_type_check
def to_gray(x, p, plane, n):
    """Make all three channels equal to the gray level."""
    red, green, blue = channels(x, p, plane, 0, n)
    for i in range(n):
        gray = luma(red[i], green[i], blue[i])
        red[i] = gray
        green[i] = gray
        blue[i] = gray


@kernel
@no_type_check
def blur_memory(size, radius):
    """A line of three channels with a margin on both sides."""
    return aligned(3 * (2 * up(radius) + up(size)))


@kernel
@no_type_check
def blur(x, p, plane, size, sigma, largest, line, y, q, y_plane):
    """Separable Gaussian with mirrored edges, from x to y: for each row, down the columns into `line`, then along it.

    largest: radius of the kernel, which is shortened to MAX_SIGMAS sigmas.
    """
    radius = min(largest, math.ceil(MAX_SIGMAS * sigma))
    width = 2 * radius + 1
    taps, folded = np.empty(width, np.float32), np.empty(width, np.float32)
    for t in range(width):
        taps[t] = np.float32(math.exp(-0.5 * ((t - radius) / sigma) ** 2))
    taps /= taps.sum()
    margin, line_plane = up(largest), len(line) // 3
    for r in range(size):
        first, last = max(0, r - radius), min(size - 1, r + radius)
        folded[:] = ZERO
        for t in range(width):  # a row beyond the edge is one inside, which counts twice
            row = abs(r + t - radius)
            folded[min(row, 2 * (size - 1) - row) - first] += taps[t]
        o, count = p + first * size, last - first + 1
        sum_rows(x, o, plane, size, size, folded, 0, 1, count, line, margin, line_plane, -HUGE, HUGE)
        for c in range(3):
            left = c * line_plane + margin
            right = left + size - 1
            for t in range(1, radius + 1):
                line[left - t] = line[left + t]
                line[right + t] = line[right - t]
        sum_rows(line, margin - radius, line_plane, 1, size, taps, 0, 1, width, y, q + r * size, y_plane, ZERO, ONE)


@kernel
@no_type_check
def log(x):
    """Natural logarithm of x > 0 to 1e-14, in arithmetic on vectors: x = m 2^e, m between the roots of 1/2 and 2."""
    bits = np.float64(x).view(np.int64)
    e = (bits - ROOT_HALF) >> 52
    m = np.int64(bits - (e << 52)).view(np.float64)
    s = (m - 1) / (m + 1)
    s2 = s * s
    series = ((((((s2 / 15 + 1 / 13) * s2 + 1 / 11) * s2 + 1 / 9) * s2 + 1 / 7) * s2 + 1 / 5) * s2 + 1 / 3) * s2 + 1
    return 2 * s * series + e * LOG_2


@kernel
@no_type_check
def warp(x, p, plane, size, params, y, q, y_plane):
    """Sparse image warp from x to y; the thin-plate spline's field is float64, because knots may nearly coincide.

    params: whether it happens, the 4 knots, the 7 weights.
    """
    knots, weights = params[1:9].reshape(4, 2), params[9:23].reshape(7, 2)
    down, right = np.empty(size), np.empty(size)
    for r in range(size):
        for j in range(size):
            down[j] = weights[4, 0] + r / size * weights[5, 0] + j / size * weights[6, 0]
            right[j] = weights[4, 1] + r / size * weights[5, 1] + j / size * weights[6, 1]
        for k in range(4):
            off_row = (r / size - knots[k, 0]) ** 2 + TINY
            for j in range(size):
                r2 = off_row + (j / size - knots[k, 1]) ** 2
                phi = r2 * log(r2) * 0.5
                down[j] += phi * weights[k, 0]
                right[j] += phi * weights[k, 1]
        for j in range(size):
            row, column = inside(r - down[j] * size, size), inside(j - right[j] * size, size)
            take(x, p, plane, size, row, column, y, q + r * size + j, y_plane)


@kernel
@no_type_check
def take(x, p, plane, size, row, column, y, q, y_plane):
    """Put the bilinear values of x at this place, which lies inside the view, into the three channels of y."""
    top, left = int(row), int(column)
    below, beside = (size if top < size - 1 else 0), (1 if left < size - 1 else 0)
    v, h = np.float32(row - top), np.float32(column - left)
    for c in range(3):
        y[q + c * y_plane] = between(x, p + c * plane + top * size + left, below, beside, v, h)


@kernel
@no_type_check
def between(x, at, below, beside, v, h):
    """The bilinear value v below and h beside the pixel at this place, whose neighbors are so far away in x."""
    upper = x[at] * (ONE - h) + x[at + beside] * h
    lower = x[at + below] * (ONE - h) + x[at + below + beside] * h
    return upper * (ONE - v) + lower * v


@kernel
@no_type_check
def inside(place, size):
    """A position, kept inside the view."""
    return min(max(place, 0.0), size - 1.0)


@kernel
@no_type_check
def rotate(x, p, plane, size, cosine, sine, y, q, y_plane):
    """Turn x about its center into y; what lies outside is mirrored."""
    last = size - 1.0
    for r in range(size):
        down = r - last / 2
        for j in range(size):
            right = j - last / 2
            row = inside(last - abs(last - abs(right * sine + down * cosine + last / 2)), size)
            column = inside(last - abs(last - abs(right * cosine - down * sine + last / 2)), size)
            take(x, p, plane, size, row, column, y, q + r * size + j, y_plane)


@kernel
@no_type_check
def turn(x, p, plane, size, turns, y, q, y_plane):
    """Quarter turns counterclockwise, or upside down, from x to y: where the first pixel is, and how far the next."""
    last = (size - 1) * size
    first, down, right = last, -size, 1
    if turns == 1:
        first, down, right = size - 1, -1, size
    elif turns == 2:
        first, down, right = last + size - 1, -size, -1
    elif turns == 3:
        first, down, right = last, 1, -size
    for c in range(3):
        for r in range(size):
            at, to = p + c * plane + first + r * down, q + c * y_plane + r * size
            for j in range(size):
                y[to + j] = x[at + j * right]


@kernel
@no_type_check
def change_levels(x, p, plane, n, op, magnitude):
    """Solarize, posterize or equalize each channel by a table of its 256 levels."""
    table = np.empty(256, np.float32)
    for c in range(3):
        channel = x[p + c * plane : p + c * plane + n]
        for level in range(256):
            changed = level
            if op == SOLARIZE and level >= np.float32(magnitude * 255):
                changed = 255 - level
            elif op == POSTERIZE:
                changed = level & (256 - (1 << (8 - int(magnitude))))
            table[level] = changed / WHITE
        if op == EQUALIZE:
            equalizing(channel, table)
        for i in range(n):
            channel[i] = table[int(np.rint(channel[i] * WHITE))]


@kernel
@no_type_check
def equalizing(channel, table):
    """Fill the table of PIL's equalize; a channel of so few pixels or levels that it has none leaves it as it is."""
    counts = np.zeros(256, np.int64)
    brightest = 0
    for i in range(len(channel)):
        level = int(np.rint(channel[i] * WHITE))
        counts[level] += 1
        brightest = max(brightest, level)
    step = (len(channel) - counts[brightest]) // 255
    if step == 0:
        return
    below = step // 2
    for level in range(256):
        table[level] = min(below // step, 255) / WHITE
        below += counts[level]


@kernel
@no_type_check
def erase(x, p, plane, size, box):
    """Make the box (top, left, height, width) black."""
    top, left, height, width = int(box[0]), int(box[1]), int(box[2]), int(box[3])
    for c in range(3):
        for r in range(top, top + height):
            first = p + c * plane + r * size + left
            x[first : first + width] = ZERO
