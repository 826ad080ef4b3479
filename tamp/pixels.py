"""Pictures, however they come, as every part of tamp sees them: upright, opaque, in 8-bit RGB."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tamp.errors import UserError

_ORIENTATION = 0x0112  # EXIF's tag
_URI = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w.=-]+)*;base64,", re.I)


def picture(given: Any, folder: str | Path = "") -> Image.Image:
    """Return a picture as every part of tamp sees it: upright, opaque, in 8-bit RGB.

    A picture gives the same pixels as a file, as its bytes, as a PIL object and as an array. The orientation in its EXIF
    data is applied. What is transparent shows white. Grey levels of 16 bits, and those that PIL keeps as whole (I) or real
    numbers (F), are scaled to 8 bits, see :func:`_grey`. Every other mode (CMYK, palette, 1 bit, ...) is converted by PIL.
    For opaque 8-bit pictures these are the pixels of transformers' ``load_image``, for transparent ones those of its image
    processors.

    Args:
        given: the path of a file; its bytes, also in base64 as a data URI (``data:image/png;base64,...``); a PIL picture; an
            array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8; or ``{"bytes": ..., "path": ...}``, as ``datasets``
            keeps one.
        folder: what the path is relative to.

    Raises:
        UserError: if it is none of these, or is missing, damaged or larger than PIL opens.
    """
    source, name = given, "The picture"
    if isinstance(given, dict):
        source = given["bytes"] if isinstance(given.get("bytes"), bytes) else given.get("path")
    try:
        if isinstance(source, str) and (uri := _URI.match(source)):
            source = base64.b64decode(source[uri.end() :])
        elif isinstance(source, str | Path):
            source = name = Path(folder) / source
        if isinstance(source, bytes | bytearray):
            source = io.BytesIO(source)
        elif isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim not in (2, 3) or not source.size:
                raise UserError(f"A picture in an array is (H, W, 3) of uint8, not {source.shape} of {source.dtype}.")
            source = Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else np.ascontiguousarray(source))
        elif not isinstance(source, Path | Image.Image):
            kind = type(given).__name__
            raise UserError(
                "An image is the path of a file, a PIL picture or array, its bytes, a data URI or "
                f"{{'bytes': ..., 'path': ...}}, not {kind}."
            )
        if isinstance(source, Image.Image):
            return _rgb(source)
        with Image.open(source) as image:
            return _rgb(image)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"There is no image {name!s:.200}.") from error
    except Exception as error:  # damaged files make PIL raise a dozen kinds
        raise UserError(f"{name!s:.200} is not a readable image: {error!s:.200}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Turn a picture upright and convert it to RGB; one that is both already is returned as it is."""
    image.load()  # TIFF's orientation is applied here
    if 0 in image.size:
        raise ValueError("it has no pixels")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Scale grey levels to 8 bits.

    Of 16 bits the upper 8 are kept, which is what PIL keeps of 16-bit colour. Levels in the modes I and F count from the
    smallest of these ranges that holds them all: 0 to 1 (F alone), 0 to 255, 0 to 65535, which counts as 16 bits. What fits
    into none of them is stretched: the lowest level becomes black, the highest white.

    Args:
        image: in the mode I, F or one of I;16.

    Returns:
        The picture in the mode L.

    Raises:
        ValueError: if a level is not finite.
    """
    levels = np.asarray(image).astype(np.float64)  # (H, W)
    if not np.isfinite(levels).all():
        raise ValueError("it has levels that are not finite")
    low, high = levels.min(), levels.max()
    ranges = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is None:
        grey = np.rint((levels - low) / (high - low) * 255) if high > low else np.zeros_like(levels)
    else:
        grey = levels // 256 if top == 65535 else np.rint(levels * (255 / top))
    if isinstance(see_through := image.info.get("transparency"), int):
        grey[levels == see_through] = 255
    return Image.fromarray(grey.astype(np.uint8))
