"""The HTML report: its figures against plain loops, its HTML as a browser reads it, and what it says is absent."""

import base64
import html
import json
import re
import sys
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_curve

import episodes.reporting.collectors
import fewshot_nam
from episodes import EpisodeSampler, FeatureBank, evaluate
from episodes.cli.main import main
from episodes.cli.options import command_line, read_options
from episodes.metrics.measures import threshold_at_tpr
from episodes.metrics.registry import MEASURES
from episodes.reporting import html_report
from episodes.reporting.collectors import ReportCollector, accuracies_at, bias_curve, roc_points
from episodes.reporting.formatting import cell, heading
from episodes.reporting.html_alarms import _fitted, add_confusions
from episodes.reporting.html_page import Page
from episodes.reporting.plots import sections, shown_heads, styles
from fewshot_nam.heads import CosineHead
from fewshot_nam.intervals import errors_of
from fewshot_nam.vision.memory_lock import exclusive

VOID = {"meta", "img", "br", "source"}
WAYS, SHOTS, QUERIES, OPEN_WAYS, EPISODES = 3, 2, 4, 2, 40
SHAPE = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES, "open_ways": OPEN_WAYS, "episodes": EPISODES}


class Reader(HTMLParser):
    """Keeps what tests need, and fails where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.ids: list[str | None] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    def images(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        sources += [attributes["srcset"] or "" for tag, attributes in self.tags if tag == "source"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [base64.b64decode(source.partition(",")[2]) for source in sources]


def bank(classes: int, seed: int, per_class: int = 8) -> FeatureBank:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=generator).repeat_interleave(per_class, 0)
    features = centres + 1.5 * torch.randn(len(centres), 6, generator=generator)
    return FeatureBank(features, torch.arange(classes).repeat_interleave(per_class))


@pytest.fixture(scope="module")
def collected():
    """Return a bank, a base bank, the report, and what was collected of nam and cosine on generalized episodes."""
    novel, base, seen = bank(7, 0), bank(4, 1, per_class=20), ReportCollector()
    report = evaluate(novel, ("nam", "cosine"), "generalized", seed=3, base=base, callback=seen, batch_size=3, **SHAPE)
    return novel, base, report, seen


@pytest.fixture(scope="module")
def alone():
    """Return a bank, what was collected of cosine on its open episodes, and the scores of each episode by a loop."""
    novel, seen = bank(7, 0), ReportCollector()
    report = evaluate(novel, ("cosine",), "open", seed=3, callback=seen, batch_size=3, **SHAPE)
    drawn = EpisodeSampler(novel, WAYS, SHOTS, QUERIES, OPEN_WAYS, seed=3).sample(0, EPISODES)
    loops = []
    for e in range(EPISODES):
        head = CosineHead()
        for way in range(WAYS):
            head.write(novel.features[drawn.support[e, way]], [way] * SHOTS)
        loops.append(tuple(head(novel.features[rows[e].flatten()]) for rows in (drawn.query, drawn.unknown)))
    return novel, report, seen.heads["cosine"], drawn, loops


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_roc_points_are_those_of_scikit_learn(accept, refuse):
    accept, refuse = np.array(accept, float), np.array(refuse, float)
    fpr, tpr = roc_points(accept, refuse)
    truth = np.r_[np.ones(len(accept)), np.zeros(len(refuse))]
    theirs = roc_curve(truth, np.r_[accept, refuse], drop_intermediate=False)
    points = set(zip(theirs[0].round(9), theirs[1].round(9), strict=True))
    assert set(zip(fpr.round(9), tpr.round(9), strict=True)) <= points
    for x, y in points:  # none lies above the stairs through ours
        assert y <= tpr[fpr <= x + 1e-9].max() + 1e-9
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_bias_curve_is_what_a_loop_over_biases_counts(base, novel):
    base, novel = np.array([*base, -np.inf]), np.array([*novel, np.inf])
    found = bias_curve(base, novel)
    assert found[1][0] == 0
    assert found[0][-1] == 0
    points = set(zip(*(axis.tolist() for axis in found), strict=True))
    swept = {((base >= b).mean().item(), (novel < b).mean().item()) for b in np.arange(-9, 9, 0.5)}
    assert points == swept
    assert accuracies_at(0.5, base, novel) == (np.mean(base >= 0.5), np.mean(novel < 0.5))


def test_scores_that_are_kept_are_those_of_a_loop(alone):
    _, _, seen, _, loops = alone
    known, unknown = seen.queries.pooled()
    assert np.allclose(known, np.concatenate([k.amax(1).numpy() for k, _ in loops]), atol=1e-6)
    assert np.allclose(unknown, np.concatenate([u.amax(1).numpy() for _, u in loops]), atol=1e-6)
    true, wrong = seen.pairs.pooled()
    own = torch.arange(WAYS).repeat_interleave(QUERIES)
    expected = [
        (k[range(len(k)), own], [*(k[q, c] for q in range(len(k)) for c in range(WAYS) if c != own[q]), *u.flatten()])
        for k, u in loops
    ]
    assert np.allclose(true, np.concatenate([t.numpy() for t, _ in expected]), atol=1e-6)
    assert np.allclose(wrong, np.concatenate([np.array([float(x) for x in w]) for _, w in expected]), atol=1e-6)


def test_accuracy_by_position_is_that_of_a_loop_and_its_mean_is_the_accuracy(alone):
    _, report, seen, _, loops = alone
    right = np.array(
        [[(k[w * QUERIES : (w + 1) * QUERIES].argmax(1) == w).float().mean() for w in range(WAYS)] for k, _ in loops]
    )
    mean, ci95 = seen.accuracy_by_position()
    assert np.allclose(mean, right.mean(0))
    assert np.allclose(ci95, errors_of(EPISODES) * right.std(0, ddof=1) / np.sqrt(EPISODES))
    assert np.isclose(mean.mean(), report.results["cosine"]["accuracy"]["mean"])


def test_the_points_on_the_roc_are_at_the_thresholds_of_the_episodes(alone):
    _, _, seen, _, loops = alone
    shares = [(k.amax(1) >= threshold_at_tpr(k.amax(1))).float().mean() for k, _ in loops]
    assert seen.tpr()[0] == pytest.approx(np.mean(shares))
    assert min(seen.tpr()) >= 0.95


def test_false_alarms_are_the_top_by_margin_and_every_image_comes_once(alone, monkeypatch):
    novel, _, _, drawn, loops = alone
    largest: dict[int, tuple[float, int, int]] = {}
    for e, (known, unknown) in enumerate(loops):
        threshold = threshold_at_tpr(known.amax(1))
        for q, image in enumerate(drawn.unknown[e].flatten().tolist()):
            score, way = unknown[q].max(0)
            margin = float(score - threshold)
            if margin >= 0 and margin > largest.get(image, (-1.0,))[0]:
                largest[image] = (margin, e, int(way))
    expected = sorted(largest.items(), key=lambda item: -item[1][0])[:5]
    assert len(largest) > 5
    monkeypatch.setattr(episodes.reporting.collectors, "_ALARMS", 5)
    seen = ReportCollector()
    evaluate(novel, ("cosine",), "open", seed=3, callback=seen, batch_size=2, **SHAPE)
    found = seen.heads["cosine"].false_alarms()
    assert [alarm.image for alarm in found] == [image for image, _ in expected]
    for alarm, (image, (margin, episode, way)) in zip(found, expected, strict=True):
        assert alarm.margin == pytest.approx(margin, abs=1e-5)
        assert (alarm.episode, alarm.support) == (episode, int(drawn.support[episode, way, 0]))
        assert alarm.answer == int(novel.labels[alarm.support])
        assert alarm.true_class == int(novel.labels[image]) != alarm.answer


def test_alarms_may_be_accepted_as_base_classes(collected):
    _, base, _, seen = collected
    alarms = seen.heads["cosine"].false_alarms()
    taken = [alarm for alarm in alarms if alarm.support is None]
    assert taken
    assert all(0 <= alarm.answer < base.num_classes for alarm in taken)


def test_confusions_are_those_of_a_loop(alone):
    novel, _, seen, drawn, loops = alone
    accepted: Counter[tuple[int, int]] = Counter()
    confused: Counter[tuple[int, int]] = Counter()
    queries: Counter[int] = Counter()
    for e, (known, unknown) in enumerate(loops):
        threshold, classes = threshold_at_tpr(known.amax(1)), drawn.classes[e].tolist()
        for image, scores in zip(drawn.unknown[e].flatten().tolist(), unknown, strict=True):
            queries[int(novel.labels[image])] += 1
            if scores.max() >= threshold:
                accepted[int(novel.labels[image]), classes[int(scores.argmax())]] += 1
        for way, scores in zip(range(len(known)), known, strict=True):
            true, answer = classes[way // QUERIES], classes[int(scores.argmax())]
            confused.update([(true, answer)] if true != answer else [])
    assert seen.accepted.answers == accepted
    assert seen.confused.answers == confused
    assert seen.accepted.queries == queries
    (true, share, answer, part), *_ = worst = seen.accepted.worst(3)
    assert [row[1] for row in worst] == sorted((seen.accepted.share(c) for c in range(7)), reverse=True)[:3]
    of_true = {b: n for (a, b), n in accepted.items() if a == true}
    assert share == sum(of_true.values()) / queries[true]
    assert part == of_true[answer] / sum(of_true.values()) == max(of_true.values()) / sum(of_true.values())


def test_confusions_with_base_classes_are_told_apart(collected):
    novel, base, report, seen = collected
    answers = {answer for _, answer in seen.heads["cosine"].accepted.answers}
    assert min(answers) >= -base.num_classes
    assert any(answer < 0 for answer in answers)
    page = Page(Path())
    add_confusions(page, report, seen, {"novel": novel, "base": base})
    assert ", a base class (" in "".join(page.parts)


def test_margins_give_the_accuracies_of_the_table(collected):
    _, _, report, seen = collected
    for name, head in seen.heads.items():
        base, novel = accuracies_at(0.0, *head.margins.pooled())
        assert float(base) == pytest.approx(report.results[name]["base_accuracy"]["mean"])
        assert float(novel) == pytest.approx(report.results[name]["novel_accuracy"]["mean"])


def test_kept_scores_are_bounded_and_the_caption_says_so(alone, monkeypatch):
    novel = alone[0]
    monkeypatch.setattr(episodes.reporting.collectors, "_BUDGET", 4 * QUERIES * (WAYS + OPEN_WAYS))
    seen = ReportCollector()
    report = evaluate(novel, ("cosine",), "open", seed=3, callback=seen, batch_size=3, **SHAPE)
    head = seen.heads["cosine"]
    assert (head.queries.episodes, head.pairs.episodes) == (4, 1)
    assert np.array_equal(head.queries.pooled()[0], alone[2].queries.pooled()[0][: 4 * WAYS * QUERIES])
    caption = sections(report, seen)[0].caption
    assert "the first 4 of 40 episodes in the first, the first 1 of 40 episodes in the second" in caption


def run_digits(directory: Path, *more: str) -> str:
    arguments = ["--episodes", "20", "--quiet", "--heads", "nam", "cosine", "--report", str(directory), *more]
    assert main(arguments) == 0
    return (directory / "index.html").read_text(encoding="utf-8")


def test_the_page_has_every_number_and_every_image_and_is_the_same_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    text = run_digits(tmp_path / "one", "--json", str(tmp_path / "out.json"))
    assert "index.html" in capsys.readouterr().out
    page, result = Reader(text), json.loads((tmp_path / "out.json").read_text())
    order = [measure for measure in MEASURES if measure in result["results"]["nam"]]
    assert set(order) == set(result["results"]["nam"])
    for kind in ("results", "paired"):
        for name, measures in result[kind].items():
            row = [name, *(cell(measure, measures[measure], kind == "paired") for measure in order)]
            assert any(page.cells[i : i + len(row)] == row for i in range(len(page.cells))), row
    headings = [heading(measure) for measure in order]
    assert any(page.cells[i : i + len(headings)] == headings for i in range(len(page.cells)))
    for absent in ("http:", "https:", "//", "<script", "<link", "@import", "url("):
        assert absent not in re.sub(r'src(set)?="[^"]*"', "", text).replace("<!DOCTYPE", ""), absent
    on_disk = {path.read_bytes() for path in (tmp_path / "one").glob("*.png")}
    assert set(page.images()) == on_disk
    assert len(on_disk) >= 4
    assert {path.name for path in (tmp_path / "one").glob("*_dark.png")} == {
        *("roc_queries_dark.png", "roc_pairs_dark.png", "scores_1_dark.png", "scores_2_dark.png", "position_dark.png")
    }
    assert text.index('class="verdict"') < text.index("<table") < text.index('id="alarms"') < text.index("<picture")
    for known in (result["config"]["bank"][key] for key in ("weights_hash", "dataset_fingerprint", "fingerprint")):
        assert f"<code>{known}</code>" in text
    assert f"fewshot-nam {fewshot_nam.__version__}" in text
    assert '<time datetime="2001-09-09">' in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert "Base accuracy against novel accuracy: there are no base classes" in text
    assert "fewshot-nam-eval --episodes 20 --heads nam cosine</code>" in text
    again = run_digits(tmp_path / "two", "--json", str(tmp_path / "again.json"))
    assert again == text, "the same seed gives the same page"
    assert run_digits(tmp_path / "two", "--seed", "1") != text, "a directory that is there is written over"
    assert not list((tmp_path / "two").glob(".*"))


def test_two_evaluations_write_one_directory_one_after_the_other(tmp_path, monkeypatch):
    """The page of one held images of the other, or it ended since the other had removed them."""
    add, page = html_report.add_alarms, tmp_path / "page" / "index.html"

    def while_written(*given):
        with pytest.raises(OSError, match=r"index\.html: locked"), exclusive(page, 0.1):
            pass
        add(*given)

    monkeypatch.setattr(html_report, "add_alarms", while_written)
    run_digits(tmp_path / "page")
    assert not list(page.parent.glob(".*"))


def test_few_queries_are_said_to_be_few(tmp_path):
    """95% of 15 queries is all 15: the marks are at 100%, and the page says why."""
    text = run_digits(tmp_path / "page", "--ways", "3", "--queries", "5")
    assert "It accepts 100.0% of the known, not 95%, because it accepts a whole number of the 15 of an episode." in text


def test_better_and_worse_are_marked(tmp_path):
    text = run_digits(tmp_path / "page", "--heads", "nam", "nam-sequential", "cosine")
    rows = re.findall(r'<td( class=\w+)?(?: data-label="[^"]*")?>([^<]*)</td>', text)
    assert {kind for kind, value in rows if "+*" in value} == {" class=better"}
    assert {kind for kind, value in rows if "-*" in value} == {" class=worse"}
    assert any(not kind for kind, _ in rows)


def test_a_closed_evaluation_says_what_is_absent_and_why(tmp_path):
    text = run_digits(tmp_path / "page", "--protocol", "closed")
    Reader(text)
    assert text.count(": the episodes have no unknown queries") == 4
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "index.html",
        "position.png",
        "position_dark.png",
    ]
    assert "nam gives" in text.split('class="verdict">')[1].split("</p>")[0]


def test_features_without_images_have_figures_but_no_images(tmp_path):
    bank(7, 0).save(tmp_path / "bank.safetensors")
    arguments = [
        "--dataset",
        f"features:{tmp_path}/bank.safetensors",
        "--ways",
        "3",
        "--open-ways",
        "2",
        "--queries",
        "4",
    ]
    (tmp_path / "page").mkdir(exist_ok=True)
    for name in ("false_alarm_07.png", "false_alarm_of_my_house.png"):  # of an earlier report, and of the user
        (tmp_path / "page" / name).write_bytes(b"image")
    (tmp_path / "page" / "index.html").write_text("fewshot-nam 0.1.0, PyTorch 2.4.0")
    text = run_digits(tmp_path / "page", *arguments)
    assert "Most confident false alarms of nam: the episodes come from a file of features" in text
    assert [path.name for path in (tmp_path / "page").glob("false_alarm_*.png")] == ["false_alarm_of_my_house.png"]


@pytest.fixture
def strange_photos(tmp_path) -> Path:
    """Return a folder of six classes whose names are no HTML, one file is no image, the others are transparent in part."""
    generator = np.random.default_rng(0)
    names = ["<script>alert(1)<", "a&b", '"quoted"', "$x_1$", "_hidden", "plain"]
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            pixels = generator.integers(0, 255, (200, 90, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / '"quoted"' / "00.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_names_are_text_and_rows_find_their_images(strange_photos, tmp_path):
    arguments = ["--dataset", f"folder:{strange_photos}", "--ways", "3", "--queries", "2", "--open-ways", "3"]
    text = run_digits(tmp_path / "page", *arguments, "--skip-unreadable")
    assert "<script" not in text
    page = Reader(text)
    alarms = [
        attributes["alt"] or "" for tag, attributes in page.tags if tag == "img" and "accepted as" in str(attributes)
    ]
    assert alarms
    assert any("<script>" in name for name in alarms)
    assert "&lt;script&gt;" in text
    names = [html.escape(path.parent.name) for path in strange_photos.glob("*/0.png")]
    assert any(f"<br>{name}/{i}.png" in text for name in names for i in range(4)), "the files of false alarms are named"
    # The first alarm's image is of the class it names, although a skipped file has moved all later rows.
    first = unescape(alarms[0]).removeprefix("an unknown image of ").partition(", accepted as ")[0]
    drawn = np.asarray(Image.open(tmp_path / "page" / "false_alarm_01.png").convert("RGB"))[:, 31:81].astype(int)
    distance = {}
    for path in strange_photos.glob("*/?.png"):
        rgba = Image.open(path)
        paper = Image.new("RGBA", rgba.size, "white")
        small = Image.alpha_composite(paper, rgba).convert("RGB").resize((50, 112), Image.Resampling.LANCZOS)
        distance[path.parent.name, path.name] = np.abs(np.asarray(small).astype(int) - drawn).mean()
    nearest = min(distance, key=distance.__getitem__)
    assert distance[nearest] < 1
    assert nearest[0] == first


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="no file has such a name there")
def test_names_of_files_are_shown_and_cost_no_result(strange_photos, tmp_path, capsys):
    odd = "\x1b[31mred\n\udce9"
    root = strange_photos.rename(strange_photos.with_name("photos\x1b[31m"))
    for path in root.glob("*/0.png"):
        path.rename(path.with_name(f"{odd}.png"))
    (root / "plain" / f"{odd}-broken.png").write_bytes(b"no image")
    arguments = [
        "--dataset",
        f"folder:{root}",
        "--ways",
        "3",
        "--queries",
        "2",
        "--open-ways",
        "3",
        "--skip-unreadable",
    ]
    text = run_digits(tmp_path / "page", *arguments, "--json", str(tmp_path / "out.json"))
    out = capsys.readouterr().out
    for shown in (text, out):
        assert "\x1b" not in shown
        assert r"\x1b[31mred\n\udce9-broken.png" in shown
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["config"]["bank"]["dataset"] == root.name


def test_the_generalized_page_has_the_curve_and_images_of_base_classes(data_dir, tmp_path):
    text = run_digits(
        tmp_path / "page", "--dataset", f"folder:{data_dir}/omniglot-py/images_evaluation/Gurmukhi", "--split", "15/10/20",
        "--protocol", "generalized", "--queries", "5", "--heads", "cosine",
    )  # fmt: skip
    page = Reader(text)
    assert (tmp_path / "page" / "base_novel.png").exists()
    assert "Stars: the bias chosen on validation classes" in text
    assert "frozen on validation classes" in text
    assert "(base class)" in text
    assert len(page.images()) == len(list((tmp_path / "page").glob("*.png")))


def test_every_head_has_its_own_style_and_the_pair_to_show_is_nam_and_cosine(collected):
    names = ["ridge", "nam", *(f"mine{i}" for i in range(20)), "cosine"]
    looks = {(str(style["color"]), str(style["linestyle"])) for style in styles(names).values()}
    assert len(looks) == len(names)
    assert styles(["nam", "cosine"])["cosine"]["color"] == styles(names)["cosine"]["color"]
    assert shown_heads(collected[2]) == ["nam", "cosine"]


@pytest.mark.parametrize(
    ("prepare", "given_as", "message"),
    [
        (lambda path: path.write_text("mine"), "page", "is a file: name a directory"),
        (lambda path: (path / "index.html").mkdir(parents=True), "page", "is a directory where the page should go"),
        (
            lambda path: (path.mkdir(), (path / "index.html").write_text("<h1>mine</h1>")),
            "page",
            "is no report, and is not replaced",
        ),
        (lambda path: (path.mkdir(), (path / "position.png").touch()), "page", "holds PNG files and no report"),
        (lambda path: None, "missing/page", "does not exist"),
    ],
    ids=["a file", "a directory called index.html", "another page", "images", "no parent"],
)
def test_a_directory_that_cannot_be_written_is_refused_before_the_work(prepare, given_as, message, tmp_path, capsys):
    prepare(tmp_path / "page")
    assert main(["--report", str(tmp_path / given_as), "--dataset", "folder:/nowhere"]) == 2
    assert message in capsys.readouterr().err


def test_the_page_is_not_written_over_another_output(tmp_path, capsys):
    (tmp_path / "page").mkdir()
    assert main(["--report", str(tmp_path / "page"), "--json", str(tmp_path / "page" / "index.html")]) == 2
    assert "is where the page of --report goes" in capsys.readouterr().err


def test_without_matplotlib_the_error_says_what_to_install_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--report", str(tmp_path / "page"), "--dataset", "folder:/nowhere"]) == 2
    assert 'pip install "fewshot-nam[plot]"' in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_one_way_one_episode_and_one_head_make_a_page(tmp_path):
    text = run_digits(tmp_path / "page", "--heads", "ridge", "--ways", "1", "--open-ways", "1", "--episodes", "1")
    Reader(text)
    assert "± n/a" in text
    assert "Most confident false alarms of ridge" in text or "no unknown query was accepted" in text


def test_images_of_sixteen_bits_keep_their_greys():
    deep = Image.fromarray(np.array([[0, 32896], [65535, 257]], dtype=np.uint16))
    assert _fitted(deep).resize((2, 2), Image.Resampling.NEAREST).convert("L").tobytes() == bytes([0, 128, 255, 1])


def test_the_command_on_the_page_gives_the_same_options():
    given_as = ["--ways", "3", "--heads", "nam", "cosine", "--dataset", "folder:my photos", "--skip-unreadable"]
    said = command_line(read_options([*given_as, "--report", "x", "--json", "y", "--quiet"]))
    assert said == "fewshot-nam-eval --ways 3 --heads nam cosine --dataset 'folder:my photos' --skip-unreadable"


def test_a_report_that_was_interrupted_can_be_made_again(tmp_path, monkeypatch):
    """It left PNG files without a page, and the same command was refused; of an older one, images were gone."""
    page = tmp_path / "page"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(html_report, "_add_figures", interrupted)
        assert main(["--episodes", "5", "--report", str(page), "--quiet"]) == 130
    assert "Not finished" in (page / "index.html").read_text()
    assert main(["--episodes", "5", "--report", str(page), "--quiet"]) == 0
    written = {path.name for path in page.iterdir()}
    assert "Not finished" not in (page / "index.html").read_text()
    (page / "false_alarm_99.png").write_bytes(b"of an earlier report")
    with monkeypatch.context() as patched:
        patched.setattr(html_report, "_add_figures", interrupted)
        assert main(["--episodes", "5", "--report", str(page), "--quiet"]) == 130
    assert (page / "false_alarm_99.png").exists()
    assert main(["--episodes", "5", "--report", str(page), "--quiet"]) == 0
    assert {path.name for path in page.iterdir()} == written
