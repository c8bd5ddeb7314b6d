"""What a reader sees: names, directions, marks, and JSON that any reader can parse."""

import json

import pytest

from episodes.metrics.registry import MEASURES
from episodes.reporting.report import Report


def report(**changes) -> Report:
    value = {"mean": 0.25, "ci95": 0.01}
    measures = [
        "open_fpr@95tpr",
        "wrong_answers@95tpr",
        "class_fpr@95tpr:unknown",
        "class_fpr@95tpr:known",
        "accuracy",
        "auroc",
        "ece",
    ]
    config = {
        "protocol": "open",
        "ways": 5,
        "shots": 1,
        "queries": 15,
        "open_ways": 5,
        "episodes": 1000,
        "seed": 0,
        "bank": {"pictures": 1797, "classes": 10, "features": 64, "dataset": "digits"},
        "base": None,
        "validation": None,
    }
    better = {name: {"mean": -0.1 if MEASURES[name].better == "lower" else 0.1, "ci95": 0.02} for name in measures}
    made = {
        "config": config,
        "results": {"nam": dict.fromkeys(measures, value), "cosine": dict.fromkeys(measures, value)},
        "paired": {"nam-cosine": better},
        "notes": ["a thing to know"],
    }
    return Report(**{**made, **changes})


def test_the_table_says_what_was_run_and_what_the_names_mean():
    text = report().table()
    for part in ["5-way 1-shot", "1,000 episodes", "digits: 1,797 images of 10 classes", "seed 0", "a thing to know"]:
        assert part in text
    for name in report().columns:
        assert f"  {name}" in text
        assert MEASURES[name].meaning in text
    assert "25.0 ± 1.0" in text
    assert text.index("open_fpr") < text.index("accuracy"), "false alarms come first"
    assert "class_fpr@95tpr:known" in text
    assert "class_fpr@95tpr:unknown" in text, "never without its split"
    assert max(len(line) for line in text.splitlines()) <= 130


@pytest.mark.parametrize(("sign", "mark"), [(1, "+*"), (-1, "-*"), (0.1, "")])
def test_differences_are_marked_by_direction_and_only_beyond_their_interval(sign, mark):
    paired = {"nam-cosine": {k: {**v, "mean": sign * v["mean"]} for k, v in report().paired["nam-cosine"].items()}}
    row = report(paired=paired).table().split("minus cosine")[1].splitlines()[1]
    assert row.startswith("nam")
    assert row.count(mark) == 6 if mark else "*" not in row


def test_json_is_strict_and_has_the_promised_shape(tmp_path):
    broken = {"nam": {"accuracy": {"mean": 0.5, "ci95": float("nan")}}}
    report(results=broken, paired={}).save_json(tmp_path / "out.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert set(read) == {"config", "results", "paired", "paired_over_classes", "notes"}
    assert read["results"]["nam"]["accuracy"] == {"mean": 0.5, "ci95": None}


def test_a_single_episode_has_no_interval_and_says_so():
    lonely = {"nam": {"accuracy": {"mean": 0.5, "ci95": float("nan")}}}
    assert "50.0 ± n/a" in report(results=lonely, paired={}).table()


def test_markdown_has_every_measure(tmp_path):
    report().save_markdown(tmp_path / "out.md")
    text = (tmp_path / "out.md").read_text()
    assert text.startswith("# 5-way 1-shot")
    assert text.count("| nam |") == 1
    assert "nam-cosine" in text
    for name in report().columns:
        assert f"`{name}`" in text


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(OSError, match="missing"):
        report().save_json(tmp_path / "missing" / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_names_of_files_and_data_sets_move_no_terminal_and_can_be_written(tmp_path):
    """A line break in a file's name began a line of its own, and one that is not UTF-8 cost the whole result."""
    odd = "\x1b[2J\x1b[H\x07\nnam 0.0 \udce9"
    bank = {**report().config["bank"], "dataset": odd, "backbone": odd}
    strange = report(config={**report().config, "bank": bank}, notes=[f"1 unreadable images: {odd}"])
    strange.save_markdown(tmp_path / "out.md")
    strange.save_json(tmp_path / "out.json")
    shown = r"\x1b[2J\x1b[H\x07\nnam 0.0 \udce9"
    for text in (strange.table(), (tmp_path / "out.md").read_text(encoding="utf-8")):
        assert text.count(shown) == 3
        assert all(one.isprintable() for one in text.replace("\n", ""))
    read = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert read["notes"] == strange.notes
    assert read["config"]["bank"]["dataset"] == odd


def test_stars_are_counted_and_held_against_chance_and_classes():
    paired = {"nam-cosine": {**report().paired["nam-cosine"], "ece": {"mean": 0.0, "ci95": 0.1}}}
    wide = {"nam-cosine": {name: {**value, "ci95": 1.0} for name, value in paired["nam-cosine"].items()}}
    wide["nam-cosine"]["accuracy"] = {"mean": 0.1, "ci95": 0.05}
    config = {**report().config, "class_groups": {"of": "class", "count": 40}}
    made = report(paired=paired, over_classes=wide, config=config)
    assert (
        "6 of 7 differences are starred; about 0 would be by chance if heads did not differ; 1 also with an interval over classes"
        in made.markdown()
    )
    assert "6 of 6 differences are starred" in made.table()
    assert "a jackknife over 40 groups, each a class" in made.markdown()
    assert made.markdown().count("| nam-cosine |") == 2
    assert "jackknife" not in report().markdown()


@pytest.mark.parametrize(
    ("mean", "found"), [(-0.05, "better, -5.0"), (0.05, "worse, +5.0"), (0.01, "no clear difference, +1.0")]
)
def test_one_sentence_says_what_was_found(mean, found):
    paired = {"nam-cosine": {**report().paired["nam-cosine"], "open_fpr@95tpr": {"mean": mean, "ci95": 0.02}}}
    lead = "Where at least 95% of known images are accepted, nam accepts 25.0% of unknown ones"
    first, *more = report(paired=paired).findings()
    assert first == f"{lead}, cosine 25.0%: {found} ± 2.0 points."
    assert report(paired=paired).conclusion() == " ".join([first, *more])
    alone = {"nam": report().results["nam"]}
    assert report(results=alone, paired={}).findings()[0] == f"{lead}."
    wide = {"nam-cosine": {"open_fpr@95tpr": {"mean": mean, "ci95": 0.2}}}
    said = report(paired=paired, over_classes=wide).findings()[0]
    assert ("With other classes it could be otherwise: the interval over classes includes 0." in said) == (
        abs(mean) > 0.02
    )
