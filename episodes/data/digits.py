"""scikit-learn's handwritten digits: 1,797 small grey images of ten classes, which come with scikit-learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from episodes.data.image_dataset import ArrayImages


def digits() -> ArrayImages:
    """Return scikit-learn's 1,797 handwritten digits: 14x14 grey images, dark ink on light paper, classes "0" to "9".

    The originals are 8x8 pixels and cropped to the digit. Three white pixels are added on each side, so that a digit takes 57% of
    the image's height; a handwritten character of Omniglot takes 59%.

    Example:
        >>> images = digits()
        >>> len(images), images.image(0).size
        (1797, (14, 14))
    """
    values = _digit_values()
    levels, labels = values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)
    pixels = (255 - np.rint(levels * (255 / 16))).astype(np.uint8)
    pixels = np.pad(pixels, ((0, 0), (3, 3), (3, 3)), constant_values=255)
    return ArrayImages("digits", pixels, labels, [str(digit) for digit in range(10)])


def _digit_values() -> np.ndarray:
    """Return ``(1797, 65)``: 64 grey levels 0..16 and the digit.

    The file that comes with scikit-learn is read directly, as ``load_digits`` does: importing scikit-learn takes seconds.
    """
    found = importlib.util.find_spec("sklearn")
    for place in found.submodule_search_locations or [] if found is not None else []:
        path = Path(place, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    return np.column_stack([data, target])
