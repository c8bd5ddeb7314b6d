"""scikit-learn's handwritten digits: 1,797 small grey images of ten classes, which come with scikit-learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from episodes.data.image_dataset import ArrayPictures


def digits() -> ArrayPictures:
    """Return scikit-learn's 1,797 handwritten digits: 14x14 grey pictures, dark ink on light paper, classes "0" to "9".

    The originals are 8x8 and cropped to the digit. Three pixels of paper are laid around them, so that a digit takes 57% of
    its picture's height, as a handwritten character takes 59% of its picture in Omniglot.
    """
    values = _digit_values()
    levels, labels = values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)
    pixels = (255 - np.rint(levels * (255 / 16))).astype(np.uint8)
    pixels = np.pad(pixels, ((0, 0), (3, 3), (3, 3)), constant_values=255)
    return ArrayPictures("digits", pixels, labels, [str(digit) for digit in range(10)])


def _digit_values() -> np.ndarray:
    """Return ``(1797, 65)``: 64 grey levels 0..16 and the digit.

    Read as ``load_digits`` reads them, from the file that comes with scikit-learn: importing that takes as long as torch.
    """
    found = importlib.util.find_spec("sklearn")
    for place in found.submodule_search_locations or [] if found is not None else []:
        path = Path(place, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    return np.column_stack([data, target])
