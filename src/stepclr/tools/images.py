"""Small images for people to look at: thumbnails for an index and for a page, and sheets of many images."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from stepclr.data.decode import upright_rgb
from stepclr.data.reading import RGB
from stepclr.errors import StepclrError, one_line

THUMBNAIL_PX = 96  # long side of a thumbnail, and side of a cell of a contact sheet
PAGE_PX, CRISP_PX = 160, 64  # long side of an image on a page; up to which a page enlarges it in whole pixels
INK, RULE = "#16181d", "#d9dce1"  # --ink and --line of style.css, of which sheets are drawn too
GAP, LINE = 4, 13  # px, between the cells of a contact sheet, and of a line of a caption


# Thumbnails.


def shown(pixels: Shaped[Tensor, "c h w"]) -> Shaped[Tensor, "shown h w"]:
    """What people see of an image: its first three channels as red, green and blue; with fewer the first, as gray."""
    return pixels[:RGB] if len(pixels) >= RGB else pixels[:1]


def jpeg_thumbnail(pixels: UInt8[Tensor, "c h w"]) -> bytes:
    """An image as a JPEG of about 3 kB, to be stored in an index: long side at most THUMBNAIL_PX, never enlarged."""
    image: Image.Image = tv.to_pil_image(shown(pixels))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC, reducing_gap=2)
    return _encoded(image, "JPEG", quality=80)


def thumbnail_pixels(content: bytes) -> UInt8[Tensor, "c h w"]:
    """A stored thumbnail as pixels; black where it is damaged."""
    try:
        return upright_rgb(content)
    except StepclrError:
        return torch.zeros(3, THUMBNAIL_PX, THUMBNAIL_PX, dtype=torch.uint8)


def thumbnail_uri(pixels: UInt8[Tensor, "c h w"] | Float[Tensor, "c h w"], side: int = THUMBNAIL_PX) -> str:
    """An image (uint8, or floats in [0, 1]) as a data URI for a page: long side at most `side`, never enlarged.

    Colors are not subsampled, so that those of an augmented view are shown as they are.
    """
    image: Image.Image = tv.to_pil_image(shown(_levels(pixels)))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(_encoded(image, "JPEG", quality=85, subsampling=0))


def sharp_uri(pixels: UInt8[Tensor, "c h w"], side: int) -> str:
    """`thumbnail_uri` for an image that may be shown enlarged: one that is as small as a thumbnail loses nothing."""
    if max(pixels.shape[1:]) > THUMBNAIL_PX:
        return thumbnail_uri(pixels, side)
    return data_uri(_encoded(tv.to_pil_image(shown(pixels)), "PNG"), "png")


def page_uri(pixels: UInt8[Tensor, "c h w"] | Float[Tensor, "c h w"], side: int = PAGE_PX) -> str:
    """`thumbnail_uri`, but PNG or WebP for an image of at most CRISP_PX: pages enlarge these in whole pixels."""
    pixels = shown(pixels)
    if max(pixels.shape) > CRISP_PX:
        return thumbnail_uri(pixels, side)
    pixels = _levels(pixels)
    gray = bool((pixels == pixels[:1]).all())
    image: Image.Image = tv.to_pil_image(pixels[:1] if gray else pixels)
    if gray or max(pixels.shape) <= CRISP_PX // 2:
        return data_uri(_encoded(image, "PNG", optimize=True), "png")
    return data_uri(_encoded(image, "WEBP", quality=90, use_sharp_yuv=True), "webp")


def _levels(pixels: Shaped[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    """The same, in 256 levels, of an image of floats in [0, 1]."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8) if pixels.is_floating_point() else pixels


def _encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """The content of an image file; options: Pillow's."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def data_uri(content: bytes, format: str = "jpeg") -> str:
    """The content of an image file as a data URI for a page."""
    return f"data:image/{format};base64,{base64.b64encode(content).decode()}"


# Sheets.


def grid(
    cells: Sequence[Image.Image], columns: int, side: int, gap: int, below: int = 0
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """Images row after row on white, and the top left corner (x, y) of each cell.

    Each image is centered in a cell of `side` x `side` pixels with `below` pixels of room under it, for a caption;
    `gap` pixels lie between the cells and around them.
    """
    rows = -(-len(cells) // columns)
    width, height = side + gap, side + below + gap
    sheet = Image.new("RGB", (gap + columns * width, gap + rows * height), "white")
    corners = []
    for place, cell in enumerate(cells):
        left, top = gap + place % columns * width, gap + place // columns * height
        sheet.paste(cell, (left + (side - cell.width) // 2, top + (side - cell.height) // 2))
        corners.append((left, top))
    return sheet, corners


def contact_sheet(thumbnails: Sequence[bytes], captions: Sequence[str], columns: int = 6) -> Image.Image:
    """Thumbnails row after row, each with its caption below: one line, or two if it contains a line break.

    Whatever a caption contains is drawn as text, without its middle where it is wider than its cell. The cell of a
    thumbnail that is empty or cannot be read is gray.
    """
    if len(thumbnails) != len(captions):
        raise StepclrError(f"{len(thumbnails)} thumbnails and {len(captions)} captions")
    columns = max(1, min(columns, len(thumbnails)))
    cells = [_cell(content) for content in thumbnails]
    sheet, corners = grid(cells, columns, THUMBNAIL_PX, GAP, below=2 * LINE)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 3)
    for (left, top), caption in zip(corners, captions, strict=True):
        for line, text in enumerate(caption.split("\n")[:2]):
            draw.text((left, top + THUMBNAIL_PX + line * LINE), _cut(one_line(text), font), INK, font)
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
    """A thumbnail fitted into a cell; a small one is enlarged, because 28 px are hard to see."""
    try:
        pixels = upright_rgb(content)
    except StepclrError:
        return Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), RULE)
    image: Image.Image = tv.to_pil_image(pixels)
    scale = THUMBNAIL_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The two ends of the text, as much as fits into the width of a cell: names often differ in the last letters."""
    if len(text) > 2 * THUMBNAIL_PX:  # a letter is wider than a pixel
        text = text[:THUMBNAIL_PX] + text[-THUMBNAIL_PX:]
    if isinstance(font, ImageFont.ImageFont):  # Pillow without FreeType draws these letters only
        text = text.encode("latin-1", "replace").decode("latin-1")
    kept, shown = len(text), text
    while kept and font.getlength(shown) > THUMBNAIL_PX:
        kept -= 1
        shown = f"{text[: kept // 2]}...{text[len(text) - (kept + 1) // 2 :]}"
    return shown
