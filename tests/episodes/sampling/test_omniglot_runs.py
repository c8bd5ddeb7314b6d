"""Omniglot's one-shot runs: which drawing belongs to which, and which files are refused."""

import pytest
from PIL import Image

import backbones
from episodes.evaluation.evaluation import evaluate
from episodes.features.extraction import extract
from episodes.sampling.omniglot_runs import omniglot_runs

ANSWERS = {"run01": [3, 1, 2], "run02": [1, 3, 2]}  # the class of test drawings 1, 2, 3


def write_runs(root, answers=ANSWERS):
    """Write runs whose drawings are of a shade of their own: 10 times the class, and 5 more for a test drawing."""
    for number, (run, order) in enumerate(answers.items()):
        for part in ("training", "test"):
            (root / run / part).mkdir(parents=True)
        lines = []
        for item, label in enumerate(order, start=1):
            shade = 100 * number + 10 * label
            Image.new("L", (5, 5), shade).save(root / run / "training" / f"class{label:02d}.png")
            Image.new("L", (5, 5), shade + 5).save(root / run / "test" / f"item{item:02d}.png")
            lines.append(f"{run}/test/item{item:02d}.png {run}/training/class{label:02d}.png\n")
        (root / run / "class_labels.txt").write_text("".join(lines))


@pytest.mark.parametrize("place", ["omniglot-py/one-shot-classification", "all_runs"])
def test_omniglot_runs_pair_each_test_drawing_with_its_class(tmp_path, place, monkeypatch):
    write_runs(tmp_path / place)
    monkeypatch.setenv("FEWSHOT_DATA", str(tmp_path))
    with pytest.warns(UserWarning, match="has 2 runs of 3 classes, the whole set has 20 of 20"):
        images, runs = omniglot_runs()
    assert images.classes == [f"run0{r}/class0{c}" for r in (1, 2) for c in (1, 2, 3)]
    assert (runs.support.shape, runs.query.shape, runs.unknown.shape) == ((2, 3, 1), (2, 3, 1), (2, 0, 0))
    for r in range(2):
        for c in range(3):
            shade = 100 * r + 10 * (c + 1)
            training, test = int(runs.support[r, c, 0]), int(runs.query[r, c, 0])
            assert images.image(training).getpixel((0, 0)) == shade
            assert images.image(test).getpixel((0, 0)) == shade + 5
            assert images.labels[training] == images.labels[test] == int(runs.classes[r, c])
            assert images.classes[images.labels[test]] == f"run0{r + 1}/class0{c + 1}"


def test_omniglot_runs_that_are_not_there_say_where_they_were_searched_for(tmp_path):
    with pytest.raises(ValueError, match=rf"looked for run01 in omniglot-py/one-shot-classification, .* of {tmp_path}"):
        omniglot_runs(tmp_path)


LINE = "run01/test/item01.png run01/training/class03.png\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LINE, ""),
        (LINE, LINE + LINE),
        (LINE, "run01/test/item01.png\n"),
        ("class03", "class01"),
        ("item02", "item01"),
        ("run01/test/item01", "run02/test/item01"),
        ("run01/training/class01", "run02/training/class01"),
        ("item01.png", "../../secret.png"),
    ],
    ids=["missing", "twice", "one word", "same class", "same item", "another run", "class of another run", "elsewhere"],
)
def test_labels_that_do_not_pair_every_drawing_once_are_refused(tmp_path, before, after):
    write_runs(tmp_path / "all_runs")
    path = tmp_path / "all_runs" / "run01" / "class_labels.txt"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(ValueError, match=rf"{path} has \d lines for 3 training and 3 test drawings; expected a line"):
        omniglot_runs(tmp_path)


@pytest.mark.parametrize("damage", ["no labels", "no text", "empty", "no drawings"])
def test_a_damaged_run_is_named(tmp_path, damage):
    write_runs(tmp_path / "all_runs")
    run = tmp_path / "all_runs" / "run02"
    if damage == "no labels":
        (run / "class_labels.txt").unlink()
    elif damage == "no text":
        (run / "class_labels.txt").write_bytes(b"\xff\xfe\x00")
    else:
        if damage == "empty":
            (run / "class_labels.txt").write_text("")
        for drawing in (*run.glob("test/*"), *run.glob("training/*")):
            drawing.unlink()
    with pytest.raises(ValueError, match=rf"{run}/class_labels.txt (is missing|has \d lines)"):
        omniglot_runs(tmp_path)


def test_runs_of_different_sizes_are_refused(tmp_path):
    write_runs(tmp_path / "all_runs", {"run01": [1, 2], "run02": [2, 1, 3]})
    with pytest.raises(ValueError, match="run02 has 3 classes and run01 has 2"):
        omniglot_runs(tmp_path)


def test_real_runs_give_the_number_of_errors_in_results(data_dir, recwarn):
    images, runs = omniglot_runs(data_dir)
    assert not recwarn.list
    assert (len(images), len(runs), runs.classes.shape) == (800, 20, (20, 20))
    bank = extract(backbones.create("conv4"), images)
    report = evaluate(bank, ["cosine"], "closed", 20, 1, 1, episodes=runs)
    # 35 of 400 in results/omniglot_lake_runs.md; a processor that rounds otherwise may turn one trial.
    assert 400 * (1 - report.results["cosine"]["accuracy"]["mean"]) == pytest.approx(35, abs=2)
