"""The benchmark of episodes compares the same work: scores, accuracies, and the plain way without anything compiled."""

import os
import time

import pytest
import torch

from fewshot_nam.heads import CosineHead

pytest.importorskip("easyfsl")


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("episode_speed")


@pytest.fixture
def problem(script):
    return script.Problem(ways=3, shots=1, queries=4, episodes=6, peer_episodes=2)


def test_every_run_is_timed_and_compared(script, problem, capsys, monkeypatch):
    monkeypatch.setattr(
        script.Sampler, "__init__", script.Sampler.__init__
    )  # restored afterwards: the script replaces it
    bank = script.random_bank(8, 12, 16, seed=0)
    runs = script.runs_of({"float32": bank}, problem)
    rows = {row["run"]: row for row in script.measure(runs, 1, time.process_time, problem.shots)}
    assert list(rows) == list(runs)
    nam, plain = rows["float32 closed nam"], rows["float32 closed nam, plain"]
    assert nam["times_plain"] == nam["episodes_per_second"] / plain["episodes_per_second"]
    assert nam["accuracy"] == pytest.approx(plain["accuracy"])
    assert nam["ratio"] == nam["episodes_per_second"] / rows[script.PEER]["episodes_per_second"]
    assert "times_plain" not in plain
    printed = capsys.readouterr().out
    assert "x easyfsl" in printed
    assert "x plain" in printed


def test_the_plain_run_uses_nothing_compiled(script, problem, monkeypatch):
    bank, seen = script.random_bank(8, 12, 16, seed=0), []
    monkeypatch.setattr(
        script, "evaluate", lambda *args, **options: seen.append(os.environ.get(script.SWITCH)) or 1 / 0
    )
    monkeypatch.setenv(script.SWITCH, "1")
    for compiled in (True, False):
        with pytest.raises(ZeroDivisionError):
            script.our_run(bank, "nam", "open", problem, 3, compiled=compiled)()
        assert os.environ[script.SWITCH] == "1"
    assert seen == ["1", "0"]


def test_scores_that_differ_are_not_timed(script, problem, monkeypatch):
    banks = {"float32": script.random_bank(8, 12, 16, seed=0)}
    script.check_scores(banks, problem)
    script.check_accuracy(banks["float32"], problem)
    right = CosineHead.score_episodes
    wrong = lambda head, *features: right(head, *features) + 0.01  # noqa: E731
    monkeypatch.setattr(script, "HEADS", ("cosine",))
    monkeypatch.setattr(CosineHead, "score_episodes", wrong)
    if script.IndexedFeatures(torch.ones(2, 2)).compiled:
        with pytest.raises(SystemExit, match="not the same work: scores of cosine on float32"):
            script.check_scores(banks, problem)
