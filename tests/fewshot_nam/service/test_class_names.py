"""Names of classes: what is one, what is none, and one class however its name is written."""

import pytest

from fewshot_nam.service.class_names import class_name


def test_white_space_is_one_space_and_none_around_a_name():
    assert class_name("  two\n words ") == "two words"


@pytest.mark.parametrize("name", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f4bb"])
def test_joiners_between_letters_that_they_join_are_parts_of_a_name(name):
    """Words of Persian and some emoji were refused."""
    assert class_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "m\u200cug",
        "\u0645\u200c",
        "\u200d\u0645",
        "\u0645\u200c\u200c\u062e",
        "\u0645\u202e\u062e",
        "mug\u3164",
        "\u2800",
    ],
)
def test_characters_that_are_not_shown_are_no_part_of_a_name(name):
    with pytest.raises(ValueError, match="cannot be shown"):
        class_name(name)


def test_a_letter_has_one_way_to_be_written_in_a_name():
    """Two classes were called "café": the one with an accent of its own, as file names of macOS have it."""
    assert class_name("cafe\u0301") == class_name("caf\u00e9") == "caf\u00e9"
