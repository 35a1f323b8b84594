"""Pictures of any shape as squares, as demonstrations hold them."""

from typing import Literal, get_args

import numpy as np
from PIL import Image

from mask_classes import UNLABELLED

Fit = Literal["crop", "pad", "stretch"]
"""crop: the square in the middle; pad: the whole with black above and below or left and right;
stretch: the whole, out of proportion."""
FITS = get_args(Fit)


def fitted(picture: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """A picture (H, W, 3) uint8, or a mask (H, W) of class ids, as a square of `size` pixels.

    Pictures are averaged as they shrink; masks take the nearest pixel, and are unlabelled where
    pictures are padded.
    """
    height, width = picture.shape[:2]
    if fit == "crop" and height != width:
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        picture = picture[top : top + edge, left : left + edge]
    elif fit == "pad" and height != width:
        edge = max(height, width)
        filling = 0 if picture.ndim == 3 else UNLABELLED
        padded = np.full((edge, edge, *picture.shape[2:]), filling, np.uint8)
        top, left = (edge - height) // 2, (edge - width) // 2
        padded[top : top + height, left : left + width] = picture
        picture = padded
    if picture.shape[:2] == (size, size):
        return np.ascontiguousarray(picture)
    # Pillow's bilinear filter widens as a picture shrinks: every pixel counts.
    how = Image.Resampling.BILINEAR if picture.ndim == 3 else Image.Resampling.NEAREST
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize((size, size), how)
    return np.asarray(resized)
