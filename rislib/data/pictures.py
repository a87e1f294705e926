"""Pictures as cameras, scanners and painters leave them, made what everything else here takes for granted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rislib.data.errors import DataError


def open_picture(file: str | Path) -> Image.Image:
    """A picture file -> RGB of 8 bits, upright.

    A camera's note on which side is up (EXIF) is obeyed, transparent places become white, and of 16 bits of
    grey the upper 8 remain. Palettes, grey and CMYK become RGB as Pillow has it.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no picture, damaged, or of numbers whose white nobody knows. Says what to do.
    """
    try:
        with Image.open(file) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except (FileNotFoundError, DataError):
        raise
    except UnidentifiedImageError as error:
        raise DataError("is no picture that Pillow knows: save it as JPEG or PNG", str(file)) from error
    except Exception as error:  # broken pictures make Pillow raise nearly everything
        problem = f"is damaged ({type(error).__name__}): copy it anew, or save it again as JPEG or PNG"
        raise DataError(problem, str(file)) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError("has real numbers for pixels: save it with 8 bits", getattr(image, "filename", None))
    return image.convert("RGB")
