"""Images small enough to be stored beside their vectors, and a sheet of them with captions."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stepclr.data.decode import upright_rgb
from stepclr.errors import StepclrError, one_line

SIDE = 96  # px, the long side of a thumbnail and of a cell
QUALITY = 80  # of its JPEG: about 3 kB
GAP, LINE = 4, 13  # px, between cells and of a line of a caption


def thumbnail(pixels: UInt8[Tensor, "3 h w"]) -> bytes:
    """An image as a JPEG whose long side is at most SIDE px; a smaller one keeps its size."""
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def contact_sheet(thumbnails: Sequence[bytes], captions: Sequence[str], columns: int = 6) -> Image.Image:
    """Thumbnails row after row, each with its caption below: one line, or two where it holds a line break.

    Whatever a caption holds is drawn as text, cut to the width of its cell; a thumbnail that cannot be read, or is
    empty, leaves its cell grey.
    """
    if len(thumbnails) != len(captions):
        raise StepclrError(f"{len(thumbnails)} thumbnails and {len(captions)} captions")
    columns = max(1, min(columns, len(thumbnails)))
    rows = -(-len(thumbnails) // columns)
    width, height = SIDE + GAP, SIDE + 2 * LINE + GAP
    sheet = Image.new("RGB", (GAP + columns * width, GAP + rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 3)
    for place, (content, caption) in enumerate(zip(thumbnails, captions, strict=True)):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        cell = _cell(content)
        sheet.paste(cell, (left + (SIDE - cell.width) // 2, top + (SIDE - cell.height) // 2))
        for line, text in enumerate(caption.split("\n")[:2]):
            draw.text((left, top + SIDE + line * LINE), _cut(one_line(text), font), "black", font)
    return sheet


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below the other."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def _cell(content: bytes) -> Image.Image:
    """A thumbnail fitted into a cell, enlarged if it is small: 28 px are hard to see."""
    try:
        image = Image.fromarray(np.ascontiguousarray(upright_rgb(content).permute(1, 2, 0).numpy()))
    except StepclrError:
        return Image.new("RGB", (SIDE, SIDE), "lightgrey")
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    text = text[:SIDE]  # a letter is wider than a pixel
    if isinstance(font, ImageFont.ImageFont):  # Pillow without FreeType draws these letters only
        text = text.encode("latin-1", "replace").decode("latin-1")
    if font.getlength(text) <= SIDE:
        return text
    while text and font.getlength(f"{text}...") > SIDE:
        text = text[:-1]
    return f"{text}..."
