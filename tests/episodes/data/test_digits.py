"""scikit-learn's digits as images."""

import numpy as np

from episodes.data.digits import digits


def test_digits_are_dark_ink_on_light_paper():
    from sklearn.datasets import load_digits

    images, source = digits(), load_digits()
    assert len(images) == 1797
    assert images.classes == [str(d) for d in range(10)]
    assert images.labels.tolist() == source.target.tolist()
    for index in (0, 700, 1796):
        image = images.image(index)
        assert (image.mode, image.size) == ("L", (14, 14))
        paper = np.asarray(image).copy()
        drawn = paper[3:-3, 3:-3].copy()
        paper[3:-3, 3:-3] = 255
        assert (paper == 255).all(), "three pixels of paper around the digit"
        assert drawn.tolist() == [[255 - round(v * 255 / 16) for v in row] for row in source.images[index]]
