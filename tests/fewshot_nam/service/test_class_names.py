"""Names of classes: what is one, what is none, and one class however its name is written."""

import time

import pytest

from fewshot_nam.service.class_names import alike, class_name, known_class

# Default_Ignorable_Code_Point of Unicode 16: https://www.unicode.org/Public/16.0.0/ucd/DerivedCoreProperties.txt
IGNORABLE = [
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010)),
    *(*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0),
    *(*range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
]


def test_white_space_is_one_space_and_none_around_a_name():
    assert class_name("  two\n words ") == "two words"


@pytest.mark.parametrize(
    "name",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian
        "\u0915\u094d\u200d\u0937",  # Hindi
        "\u09b0\u200d\u09cd\u09af\u09be\u09ac",  # Bengali
        "\U0001f469\u200d\U0001f4bb",
        "\U0001f469\U0001f3fd\u200d\U0001f4bb",
        "\U0001f642\u200d\u2194",
    ],
)
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


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("mug\ufe0f", "mug"),
        ("\u2764\ufe0f", "\u2764"),
        ("1\ufe0f\u20e3", "1\u20e3"),
        ("\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f3f3\u200d\U0001f308"),
        ("\u845b\U000e0100", "\u845b"),
        ("red \ufe0f mug", "red mug"),
    ],
)
def test_a_variation_of_how_a_character_is_drawn_makes_no_other_name(name, same):
    """Two classes were called "mug", one of them with a variation selector behind it."""
    assert class_name(name) == same
    assert known_class(["cup", name], same) == name
    assert known_class(["cup", same], name) == same


@pytest.mark.parametrize("written", ["m{}ug", "mug{}", "\u4e2d{}\u6587", "\u00a9 {}"])
def test_no_character_that_shows_nothing_makes_another_name(written):
    """Joiners between Chinese letters did, and other characters that programs are to ignore."""
    for number in IGNORABLE:
        try:
            found = class_name(written.format(chr(number)))
        except ValueError:
            continue
        assert found == written.format("").strip(), hex(number)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("\u06a9\u0627\u0631\u200c\u0647\u0627", "\u06a9\u0627\u0631\u0647\u0627"),
        ("\u062f\u200d\u0627", "\u062f\u0627"),
        ("\u2615\u200d\u2615", "\u2615\u2615"),
    ],
)
def test_a_joiner_makes_no_other_class(name, same):
    """Behind a letter that joins nothing it does not show: two classes of Persian words looked the same."""
    assert class_name(name) == name
    assert known_class(["cup", name], same) == name
    assert known_class(["cup", same], name) == same
    assert known_class([name, same], same) == same
    assert alike(name) == alike(same)


def test_a_name_without_end_takes_no_time():
    """Normalising 200,000 characters took a minute and a half, in which nothing else ran."""
    began = time.process_time()
    endless = "a" + 300_000 * "\u0300" + 300_000 * "\u0316"
    assert known_class(["cup", "a"], endless) is None
    with pytest.raises(ValueError, match="may have 100 characters, this one has 600001"):
        class_name(endless)
    assert time.process_time() - began < 5
