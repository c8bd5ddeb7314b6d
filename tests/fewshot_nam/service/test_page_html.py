"""What the page shows: every name escaped, every number in its place."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from fewshot_nam.service import page_html as html
from fewshot_nam.service.findings import Answer, Check, ClassView, Learned, Promise

EVIL = '<img src=x onerror="alert(1)">\'&'


def parsed(text):
    """Return the tree of what is well-formed XML, as what we write is."""
    closed = re.sub(r"<(img|br)([^>]*)>", r"<\1\2/>", text)
    return ElementTree.fromstring(f"<div>{closed}</div>")


def words(text):
    return " ".join(" ".join(parsed(text).itertext()).split())


def test_names_are_text_wherever_they_stand():
    view = ClassView(EVIL, 2, [b"jpeg"], EVIL, -0.5, True)
    answer = Answer(None, EVIL, 0.1, 0.2, [(EVIL, 0.1)], 0.01)
    check = Check([0.1], [0.2], [], 0.15, {(EVIL, EVIL): 1, (None, EVIL): 1}, [EVIL])
    shown = [
        html.note(EVIL),
        html.learned_note(Learned({EVIL: 1}, 0, [EVIL], [EVIL])),
        html.classes_html([view], 0.0),
        html.answer_html(answer, (0.0, 1.0)),
        html.check_html(check),
        html.promise_html(Promise(0.1, 0.0, 0.1, None, 9, 0.0, None, 0, [EVIL])),
    ]
    for text in shown:
        assert 'onerror="' not in text
        assert EVIL in "".join(parsed(text).itertext())
    assert parsed(shown[2]).find(".//button").get("data-forget") == EVIL


def test_an_answer_is_a_class_or_unknown_with_bars_and_threshold():
    known = html.answer_html(Answer("cup", "cup", 0.9, 0.5, [("cup", 0.9), ("mug", 0.4)], 0.012), (0.0, 1.0))
    assert "cup score 0.900, accepted from 0.500 · 12 ms" in words(known)
    assert [bar.get("style") for bar in parsed(known).iter() if bar.get("class") == "fill"] == [
        "width:90.0%",
        "width:40.0%",
    ]
    assert known.count('class="mark"') == 2
    assert 'class="nam-track refused"' in known
    refused = html.answer_html(Answer(None, "cup", 0.4, 0.5, [("cup", 0.4)], 0.01), (0.0, 1.0))
    assert words(refused).startswith("unknown most like cup, but its score 0.400 is below the threshold 0.500")
    free = html.answer_html(Answer("cup", "cup", 0.4, None, [("cup", 0.4)], 0.01), (0.4, 0.4))
    assert "nothing is refused yet" in free
    assert "mark" not in free


def test_a_class_called_unknown_does_not_look_like_a_refusal():
    for threshold in (0.3, None):
        named = html.answer_html(Answer("unknown", "unknown", 0.4, threshold, [("unknown", 0.4)], 0.01), (0.0, 1.0))
        assert "'unknown'" in words(named)
    assert "'unknown'" not in words(html.answer_html(Answer(None, "cup", 0.4, 0.5, [("cup", 0.4)], 0.01), (0.0, 1.0)))
    table = html.confusion_table(Check([0.1], [0.1], [], 0.1, {("unknown", "unknown"): 1, (None, None): 1}, []))
    assert words(table).count("'unknown'") == 1


def test_classes_can_be_found_and_are_not_shown_by_the_thousand():
    views = [ClassView(f"class {i}", 1, [], None, 0.0, False) for i in range(120)]
    shown = html.classes_html(views, None)
    assert shown.count("data-forget") == html.MOST_CLASSES
    assert "120 classes, 120 images; 50 shown" in shown
    assert html.classes_html(views, None, " CLASS 119").count("data-forget") == 1
    assert "No class is known yet" in html.classes_html([], None)


def test_what_was_left_out_is_listed_to_a_length():
    text = words(html.learned_note(Learned({"cup": 2}, 1, [f"{i}.txt: no image" for i in range(7)], [])))
    assert text == (
        "Learned cup (2 images). Left out, learned before: 1 image. Left out, 7 images: 0.txt: no image; 1.txt: no image; "
        "2.txt: no image; 3.txt: no image; 4.txt: no image; and 2 more."
    )


def test_what_is_refused_is_said_with_the_promise_while_it_holds():
    promise = Promise(0.05, -0.3, 0.0498, 0.078, 180, 0.044, 0.9, 30, [])
    assert words(html.refusal_html(None, None)) == "Nothing is refused yet."
    assert "Promise." in html.refusal_html(-0.3, promise)
    later = words(html.refusal_html(-0.25, None))
    assert "from the score -0.250 on. Set the rate again" in later
    assert "Promise" not in later


def test_a_promise_says_its_bound_its_basis_and_its_cost():
    text = words(html.promise_html(Promise(0.05, -0.3, 0.0498, 0.078, 180, 0.044, 0.9, 30, ["a warning"])))
    for part in (
        "At most 4.98%",
        "like the 180 given",
        "at most 7.80%",
        "4.40% are accepted",
        "About 10.0%",
        "30 images",
        "a warning",
    ):
        assert part in text
    assert "Not known" in html.promise_html(Promise(0.05, -0.3, 0.0498, None, 180, 0.044, None, 0, []))


def test_histograms_count_every_image_and_show_the_threshold():
    check = Check([0.1, 0.9, 0.9], [0.2, 0.3], [0.5], 0.6, {("cup", "cup"): 2, ("cup", None): 1, (None, None): 3}, [])
    tree = parsed(html.histogram_svg(check))
    counts = [title.text.split(" of ") for title in tree.iter() if title.tag.endswith("title")]
    assert sum(int(count) for count, _ in counts) == 6
    assert "threshold 0.60" in "".join(tree.itertext())
    text = words(html.check_html(check))
    assert "Of 3 images of known classes 2 right, 1 called unknown, 0 wrong." in text
    assert "Of 3 images of other classes 3 refused, 0 false alarms (0.0%)." in text


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5]])
def test_a_histogram_of_one_score(scores):
    assert "<rect" in html.histogram_svg(Check(scores, [], [], None, {}, []))


def test_confusions_are_a_table_of_true_classes_and_answers():
    confusions = {("cup", "cup"): 8, ("cup", "mug"): 1, ("mug", None): 2, (None, "mug"): 3}
    rows = [
        ["".join(cell.itertext()) or None for cell in row]
        for row in parsed(html.confusion_table(Check([], [], [], 0.5, confusions, []))).iter("tr")
    ]
    assert rows == [
        [None, "cup", "mug", "unknown"],
        ["cup", "8", "1", None],
        ["mug", None, None, "2"],
        ["other classes", None, "3", None],
    ]


@pytest.mark.parametrize("wrong", [0, 5])
def test_no_image_is_left_out_of_the_confusions_of_many_classes(wrong):
    """Rows and columns beyond 20 were left out without a word, with them right answers of the rows shown."""
    right = {(f"class {i:02}", f"class {i:02}"): 1 for i in range(30)}
    confusions = (
        right | {(f"class {i:02}", f"other {i:02}"): wrong for i in range(30) if wrong} | {(None, "other 00"): 2}
    )
    table = parsed(html.confusion_table(Check([], [], [], 0.5, confusions, [])))
    head, *rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert sum(int(cell) for row in rows for cell in row[1:] if cell) == sum(confusions.values())
    assert [row[0] for row in rows[20:]] == ["10 classes more", "other classes"]
    assert head[21:] == [f"{40 if wrong else 11} classes more"]
    assert all(row[1 + head[1:].index(row[0])] == "1" for row in rows[:20])
    kinds = [[cell.get("class") for cell in row if cell.tag == "td"] for row in table.iter("tr")][1:]
    assert [kinds[i][head[1:].index(row[0])] for i, row in enumerate(rows[:20])] == 20 * ["right"]
    assert all(kind in ("", "wrong") for kind in kinds[-1])
    assert set(kinds[20]) == {""}


@pytest.mark.parametrize(
    ("name", "find"), [("\u2764", "\u2764\ufe0f"), ("cafe\u0301", "CAF\u00c9"), ("red  mug", "d m")]
)
def test_a_class_is_found_however_its_name_is_written(name, find):
    """The name of a heart is kept without what makes it red, and with it no class was found."""
    views = [ClassView(name, 1, [], None, 0.0, False), ClassView("other", 1, [], None, 0.0, False)]
    assert html.classes_html(views, None, find).count("data-forget") == 1


def test_a_text_to_find_counts_to_the_length_of_a_name_and_is_prepared_once():
    """It was put into lower case once for each class, however long: megabytes for thousands of classes."""
    views = [ClassView("A" * 100, 1, [], None, 0.0, False), ClassView("other", 1, [], None, 0.0, False)]
    shown = html.classes_html(views, None, "a" * 100 + "b" * 1000)
    assert "A" * 100 in shown
    assert "other" not in shown


def test_what_is_of_before_is_shown_as_such_by_the_page_s_style():
    assert "display:block" not in html.of_state("<p>cup</p>", "0a1b 3", now=True)
    assert "display:block" in html.of_state("<p>cup</p>", "0a1b 3", now=False)
    assert (
        html.style_of_before(["0a1b 3"])
        == '<style>[data-of="0a1b 3"] > .nam-before { display: block !important; }</style>'
    )
    for wrong in ("", "0a1b", '"]{} 3', "0a1b 3\n", "</style><script> 3", "0A 3", "f" * 33 + " 3"):
        assert html.style_of_before([wrong]) == "<style></style>"
