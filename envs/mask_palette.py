"""What the colours or numbers of other people's masks mean, as class ids (`mask_classes`).

A mapping is a JSON or YAML file of one level. Its keys are all numbers (values of grey or indexed
pictures and arrays) or all colours ("#d55e00" or "213,94,0"), its values names of classes or their
ids; the key `other` stands for everything that is not listed:

    0: background
    1: robot
    17: object
    other: unlabelled
"""

import io
import os
import pathlib
import re
import zipfile
import zlib

import numpy as np
from PIL import Image

from errors import UserError
from mask_classes import NAMES, PALETTE, UNLABELLED, UNLABELLED_COLOUR
from regular_file import open_regular, read_bytes, read_text

LARGEST_MAPPING = 2**20
"""Bytes."""
LARGEST_PICTURE = 2**26
"""Bytes of a PNG."""
BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow and NumPy raise of a damaged file."""
NO_ARRAY = (*BROKEN, LookupError, RuntimeError, TypeError, OverflowError, MemoryError,
            zipfile.BadZipFile, zlib.error)  # fmt: skip
"""What NumPy raises of an archive besides."""
OTHER = "other"


class MaskPalette:
    """Numbers and colours of masks by class id.

    Args:
        numbers: class ids by number; None: masks of numbers are not known.
        colours: class ids by colour, red · 65536 + green · 256 + blue; None: masks in colours are
            not.
        other: class id of everything else; None: it is refused.
        source: what names the palette in errors.
    """

    def __init__(
        self,
        numbers: dict[int, int] | None,
        colours: dict[int, int] | None,
        other: int | None,
        source: str,
    ):
        self.numbers, self.colours = numbers, colours
        self._other, self._source = other, source

    @classmethod
    def own(cls) -> "MaskPalette":
        """The toolkit's class ids, as numbers and in its own colours."""
        ids = {number: number for number in (*range(len(NAMES)), UNLABELLED)}
        colours = {_code(colour): number for number, colour in enumerate(PALETTE.tolist())}
        colours[_code(UNLABELLED_COLOUR)] = UNLABELLED
        return cls(ids, colours, None, "the toolkit's classes (give other palettes by a mapping)")

    @classmethod
    def read(cls, path: str | os.PathLike) -> "MaskPalette":
        """From a mapping file.

        Raises:
            UserError: it cannot be read, or says something else than what numbers or colours mean.
        """
        import yaml

        try:
            found = yaml.safe_load(read_text(path, LARGEST_MAPPING))  # JSON is YAML
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise UserError(f"{path} is no JSON or YAML: {_brief(error)}") from error
        if not isinstance(found, dict) or not found:
            raise UserError(f"{path} is no mapping of numbers or colours to names of classes")
        other, numbers, colours = None, {}, {}
        for key, value in found.items():
            number = _class(value, f"{path}: {key!r}")
            if key == OTHER:
                other = number
            elif (index := _index(key)) is not None:
                numbers[index] = number
            elif (colour := _colour(key)) is not None:
                colours[colour] = number
            else:
                raise UserError(
                    f'{path}: {_brief(key)} is no number, no colour ("#d55e00" or "213,94,0") and'
                    f" not {OTHER}"
                )
        if numbers and colours:
            raise UserError(f"{path} names numbers and colours; give one kind")
        return cls(numbers or None, colours or None, other, str(path))

    def ids(self, mask: np.ndarray, where: str) -> np.ndarray:
        """Class ids (H, W) uint8 of a mask of numbers (H, W) or colours (H, W, 3) uint8.

        Raises:
            UserError: it has another kind than the palette, or a value that is not in it; names
                `where`.
        """
        kind = "colours" if mask.ndim == 3 else "numbers"
        table = self.colours if mask.ndim == 3 else self.numbers
        if table is None and self._other is None:
            raise UserError(f"{where} is a mask in {kind}, {self._source} says nothing of these")
        if mask.ndim == 3:
            wide = mask.astype(np.int64)
            mask = wide[..., 0] * 65536 + wide[..., 1] * 256 + wide[..., 2]
        values, inverse = np.unique(mask, return_inverse=True)
        classes = []
        for value in values.tolist():
            found = (table or {}).get(value, self._other)
            if found is None:
                shown = _colour_words(value) if kind == "colours" else value
                raise UserError(f"{where} holds {shown}, which is not in {self._source}")
            classes.append(found)
        return np.array(classes, np.uint8)[inverse.reshape(mask.shape)]

    def of_picture(self, picture: Image.Image, where: str) -> np.ndarray:
        """Class ids (H, W) uint8 of an open PNG.

        Raises:
            UserError: as `ids`, or it cannot be decoded.
        """
        try:
            if picture.mode == "P" and self.numbers is None:
                picture = picture.convert("RGB")
            elif picture.mode in ("RGBA", "LA", "PA"):
                picture = picture.convert("RGB" if picture.mode == "RGBA" else "L")
            mask = np.asarray(picture)
        except BROKEN as error:
            raise UserError(f"{where} cannot be decoded: {_brief(error)}") from error
        return self.ids(mask.astype(np.uint8) if mask.dtype == bool else mask, where)


def read_mask(path: pathlib.Path, palette: MaskPalette) -> np.ndarray:
    """Class ids (H, W) uint8 of a PNG, NPY or NPZ file.

    Raises:
        UserError: it cannot be read, holds something else, or what the palette does not know.
    """
    if path.suffix == ".png":
        content = read_bytes(path, LARGEST_PICTURE)
        try:
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                picture.verify()  # checksums, which are not looked at when it is decoded
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                return palette.of_picture(picture, str(path))
        except BROKEN as error:
            raise UserError(f"{path} is no readable PNG: {_brief(error)}") from error
    mask = read_array(path, "mask")
    if mask.ndim != 2:
        raise UserError(f"{path} has shape {mask.shape}, not (height, width)")
    return palette.ids(mask, str(path))


def read_array(path: pathlib.Path, name: str) -> np.ndarray:
    """Whole numbers of an NPY file, or of an NPZ file's `name` or only array.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    with open_regular(path) as file:
        try:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                names = found.files
                if name not in names and len(names) != 1:
                    raise UserError(
                        f"{path} holds {', '.join(names) or 'nothing'}; name the array {name}"
                    )
                found = found[name if name in names else names[0]]
        except NO_ARRAY as error:
            reason = _brief(error) or type(error).__name__
            raise UserError(f"{path} is no readable NumPy file: {reason}") from error
    if found.dtype.kind not in "uib":
        raise UserError(f"{path} holds {found.dtype}, not whole numbers")
    return found.astype(np.uint8) if found.dtype == bool else found


def _class(value: object, where: str) -> int:
    names = {name: number for number, name in enumerate(NAMES)} | {"unlabelled": UNLABELLED}
    if isinstance(value, str) and value.strip().lower() in names:
        return names[value.strip().lower()]
    if type(value) is int and value in names.values():
        return value
    raise UserError(f"{where} is {_brief(value)}, no class; use one of {', '.join(names)}")


def _index(key: object) -> int | None:
    if type(key) is int:
        return key
    return int(key) if isinstance(key, str) and re.fullmatch(r"\s*\d{1,9}\s*", key) else None


def _colour(key: object) -> int | None:
    if not isinstance(key, str):
        return None
    if re.fullmatch(r"#[0-9a-fA-F]{6}", key.strip()):
        return int(key.strip()[1:], 16)
    parts = re.fullmatch(r"[\s\[(]*(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s\])]*", key)
    if parts is None or max(map(int, parts.groups())) > 255:
        return None
    return _code([int(part) for part in parts.groups()])


def _code(colour) -> int:
    red, green, blue = colour
    return red * 65536 + green * 256 + blue


def _colour_words(code: int) -> str:
    return f"the colour {code >> 16},{code >> 8 & 255},{code & 255}"


def _brief(value: object) -> str:
    words = " ".join(str(value).split())
    return words if len(words) <= 80 else f"{words[:80]}..."
