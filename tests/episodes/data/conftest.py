"""Small trees of images that the tests of data sets share."""

import pytest
from PIL import Image


@pytest.fixture
def paint():
    """Return a function that writes a small grey image, and the directories above it."""

    def write(path, shade=100, size=(6, 4), **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, shade).save(path, **options)

    return write


@pytest.fixture
def tree(tmp_path, paint):
    """Three classes, with images at two depths, hidden files, other files and a link."""
    root = tmp_path / "animals"
    paint(root / "dog" / "b.JPG", 10)
    paint(root / "dog" / "a.png", 20)
    paint(root / "dog" / "images" / "c.jpeg", 30)
    paint(root / "cat" / "deep" / "er" / "a.bmp", 40)
    paint(root / "Zebu" / "z.tif", 50)
    paint(root / "dog" / ".hidden.png")
    paint(root / "dog" / ".trash" / "old.png")
    paint(root / ".thumbnails" / "t.png")
    paint(root / "loose.png")
    (root / "dog" / "notes.txt").write_text("no image")
    return root
