"""Images inside a page: as data URIs, small."""

import base64
import io
from collections.abc import Iterable

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

THUMBNAIL = 96  # px, the longer side


def thumbnail(pixels: UInt8[Tensor, "3 h w"] | Float[Tensor, "3 h w"], side: int = THUMBNAIL) -> str:
    """An image (uint8, or floats in [0, 1]) as a data URI, its longer side at most `side` pixels, never enlarged."""
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    image: Image.Image = tv.to_pil_image(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def thumbnails(images: Iterable[Tensor], side: int = THUMBNAIL) -> list[str]:
    """`thumbnail` of each."""
    return [thumbnail(image, side) for image in images]
