"""The images that a command line names."""

import pytest

from fewshot_nam.cli.image_arguments import images_in, images_of_classes


@pytest.fixture
def tree(tmp_path):
    for file in ("a/2.png", "a/1.JPG", "a/deep/3.png", "b/4.webp", "b/notes.txt", "b/.hidden.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


def test_a_directory_stands_for_all_images_below_it_and_a_file_for_itself(tree):
    found = images_in([str(tree / "b" / "notes.txt"), str(tree / "a")])
    assert found == [
        tree / "b" / "notes.txt",
        tree / "a" / "1.JPG",
        tree / "a" / "2.png",
        tree / "a" / "deep" / "3.png",
    ]


def test_the_working_directory_can_be_named_by_a_dot(tree, monkeypatch):
    monkeypatch.chdir(tree / "b")
    assert [str(path) for path in images_in(["."])] == ["4.webp"]


def test_classes_are_the_directories_directly_below(tree):
    found = images_of_classes([str(tree)], "")
    assert [(path.relative_to(tree).as_posix(), label) for path, label in found] == [
        ("a/1.JPG", "a"),
        ("a/2.png", "a"),
        ("a/deep/3.png", "a"),
        ("b/4.webp", "b"),
    ]


def test_what_names_no_images_is_refused(tree):
    with pytest.raises(ValueError, match=r"nothing: there is no such file or directory"):
        images_in([str(tree / "a"), str(tree / "nothing")])
    (tree / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images"):
        images_in([str(tree / "empty")])
    with pytest.raises(ValueError, match=r"empty holds no images"):
        images_of_classes([str(tree)], "")
    with pytest.raises(ValueError, match=r"b: holds no class directories, expected .*; do otherwise"):
        images_of_classes([str(tree / "b")], "do otherwise")
    with pytest.raises(ValueError, match=r"4.webp: a file; expected a directory"):
        images_of_classes([str(tree / "b" / "4.webp")], "")
    with pytest.raises(ValueError, match=r"nothing: not there; expected a directory"):
        images_of_classes([str(tree / "nothing")], "")
    with pytest.raises(ValueError, match=r"1.JPG stands beside the class directories"):
        images_of_classes([str(tree / "a")], "")
