"""Images of digits for the page and the server, drawn on the spot."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def digits():
    """Return PIL images of each digit, 40 by 40 pixels, dark on white."""
    data = load_digits()
    return {
        label: [
            Image.fromarray(np.uint8(255 - image * 15)).resize((40, 40))
            for image in data.images[data.target == label][:40]
        ]
        for label in range(10)
    }


@pytest.fixture(scope="session")
def digit_files(digits, tmp_path_factory):
    """Return the same images as files: ``digit_files[label][i]``."""
    root = tmp_path_factory.mktemp("digits")
    files = {}
    for label, images in digits.items():
        place = root / str(label)
        place.mkdir()
        files[label] = [place / f"{label}_{i}.png" for i in range(len(images))]
        for image, file in zip(images, files[label], strict=True):
            image.save(file)
    return files
