"""An image as a tensor: eight bits a channel, upright, grey or RGB, of the size asked for. Folders and streams share it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from torch import Tensor

from lightning_cnnopt.core.errors import DataError

Resize = Literal["crop", "squash"]
OnBroken = Literal["raise", "skip"]
"""What is done about an image that can't be decoded: the run ends, or it is left out, and told."""
Shape = tuple[int, int, int]
"""Channels, height and width."""

_GREY = ("1", "L", "LA", "La", "I", "F")
_ORIENTATION = 0x0112
_OVER = 2
"""How many times larger than needed a JPEG is decoded at least: less would be seen in the result."""


def read_image(path: str | Path, channels: int = 3, size: tuple[int, int] | None = None, resize: Resize = "crop") -> Tensor:
    """Decode a file, by Pillow; what becomes of its levels is said by :func:`to_pixels`.

    Args:
        path: The file.
        channels: 1 for grey (ITU-R 601 luma) or 3 for RGB.
        size: Height and width of the result; by default those of the image.
        resize: ``"crop"`` scales the image until its shorter side fits, then cuts the centre out; ``"squash"`` scales
            height and width each by its own factor.

    Returns:
        (channels, height, width), uint8.

    Raises:
        DataError: If the file is no image, is damaged, or has levels whose range can't be known (32 bits).
        OSError: If the file can't be opened.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "red.png"
        >>> Image.new("RGB", (6, 4), (255, 0, 0)).save(path)
        >>> read_image(path, size=(2, 2))[:, 0, 0]
        tensor([255,   0,   0], dtype=torch.uint8)
    """
    try:
        with Image.open(path) as picture:
            return to_pixels(picture, channels, size, resize)
    except Exception as error:  # decoders raise all kinds of exceptions on damaged files
        raise _named(path, error) from error


def to_pixels(picture: Image.Image, channels: int = 3, size: tuple[int, int] | None = None, resize: Resize = "crop") -> Tensor:
    """Return the levels of a picture of Pillow's, which is decoded if it was only opened.

    - Transparency is dropped: the colours are those that were stored, whatever lies behind them. That is what Pillow's
      ``convert`` and torchvision's ``decode_image`` do.
    - Of 16 bits the upper 8 count, ``level >> 8``. That is torchvision's rule (``to_dtype(…, scale=True)``), and Pillow's for
      colours, which it does not hand out in 16 bits; so grey and colour are alike. Levels that were widened from 8 bits come
      back as they were. Pillow's ``convert`` would clip grey ones at 255.
    - The rotation that EXIF states is done, palettes are looked up, and of several frames the current one counts.
    - Resizing is bilinear with antialiasing, torchvision's. A JPEG that was only opened, and is more than four times too
      large, is decoded at a half, a quarter or an eighth of its size first, still at least twice too large, so that the
      result differs by few levels.

    Args:
        picture: Opened or decoded.
        channels: 1 for grey (ITU-R 601 luma) or 3 for RGB.
        size: Height and width of the result; by default those of the picture.
        resize: As for :func:`read_image`.

    Returns:
        (channels, height, width), uint8.

    Raises:
        ValueError: If it has levels whose range can't be known (32 bits).
        Exception: Whatever Pillow's decoder raises of a damaged picture.

    Example:
        >>> to_pixels(Image.new("P", (40, 20)), 3, (8, 8)).shape
        torch.Size([3, 8, 8])
    """
    if size is not None:
        _draft(picture, size, resize)
    picture.load()
    upright = ImageOps.exif_transpose(picture) if picture.getexif().get(_ORIENTATION, 1) != 1 else picture
    result = torch.from_numpy(_levels(upright, picture.format, channels)).permute(2, 0, 1)
    if size is not None and result.shape[1:] != size:
        result = _resized(result, size, resize)
    return result.expand(channels, -1, -1).contiguous()


def read_as(path: Path, shape: Shape, resize: Resize | None) -> Tensor:
    """Decode a file to an image of this shape.

    Raises:
        DataError: If it is broken, or has another size and is not to be resized.
    """
    channels, height, width = shape
    image = read_image(path, channels, None if resize is None else (height, width), resize or "crop")
    if image.shape != shape:
        raise DataError(f"{path} is of {image.shape[1]}x{image.shape[2]}, other than its head says.")
    return image


def read_header(path: str | Path) -> tuple[int, int, bool]:
    """Return height and width of an upright image, and whether it is grey, without decoding it.

    Raises:
        DataError: If the file is no image.
        OSError: If the file can't be opened.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("L", (6, 4)).save(path)
        >>> read_header(path)
        (4, 6, True)
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            grey = image.mode.partition(";")[0] in _GREY
            return (width, height, grey) if _is_turned(image) else (height, width, grey)
    except Exception as error:
        raise _named(path, error) from error


def _named(path: str | Path, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:  # the system's, not a decoder's
        return error
    reason = str(error).replace(f" {str(path)!r}", "")
    return DataError(f"{path} can't be decoded: {reason or type(error).__name__}.")


def _is_turned(image: Image.Image) -> bool:
    # asked for its EXIF block, a PNG without one before its pixels is decoded whole
    exif = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
    if isinstance(image, TiffImageFile) and image.size != (image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]):
        return False  # Pillow has turned it already, as some versions do
    return exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)


def _draft(image: Image.Image, size: tuple[int, int], resize: Resize) -> None:
    width, height = image.size
    turned = _is_turned(image)
    scaled = _scaled((width, height) if turned else (height, width), size, resize)
    wanted = scaled if turned else scaled[::-1]
    image.draft(None, (wanted[0] * _OVER, wanted[1] * _OVER))  # None keeps the mode


def _levels(image: Image.Image, format: str | None, channels: int) -> np.ndarray:
    """Return (H, W, 1) or (H, W, channels); Pillow's own conversion would clip 16 bits at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and format in ("PNG", "PPM")):
        return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
    if image.mode in ("I", "F"):
        raise ValueError(f"it has 32 bits a level (mode {image.mode}), whose range is not known; save it with 8 or 16")
    if "transparency" in image.info:  # else Pillow warns that it drops it
        image = image.copy()
        del image.info["transparency"]
    grey = channels == 1 or image.mode in _GREY
    mode = "L" if grey else "RGB"
    levels = np.array(image if image.mode == mode else image.convert(mode))  # to convert to the same mode is to copy
    return levels[..., None] if grey else levels


def _resized(image: Tensor, size: tuple[int, int], resize: Resize) -> Tensor:
    from torchvision.transforms.v2 import functional as transforms  # here, as importing it takes long

    scaled = _scaled((image.shape[1], image.shape[2]), size, resize)
    return transforms.center_crop(transforms.resize(image, list(scaled), antialias=True), list(size))


def _scaled(given: tuple[int, int], size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Return height and width before the crop."""
    (height, width), (new_height, new_width) = given, size
    if resize == "squash":
        return size
    if height * new_width <= width * new_height:
        return new_height, new_height * width // height
    return new_width * height // width, new_width
