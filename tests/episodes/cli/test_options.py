"""Options: what is marked where an option is declared is what the command goes by."""

import dataclasses
import inspect

from episodes.cli.options import command_line, parser, read_options
from episodes.evaluation.evaluation import EvaluationSettings, evaluate


def test_marks_are_of_options_that_exist():
    made = parser()
    assert set(made.marks) <= {action.dest for action in made._actions}
    assert made.marked("file to write") == ["episodes_file", "json", "markdown", "save_features"]
    assert made.marked("specification") == ["dataset", "base", "base_queries", "validation"]
    assert set(made.marked("file to read")) == {"weights", "split", "config"}


def test_every_option_but_those_marked_is_in_the_command_that_gives_the_same_numbers():
    made = parser()
    without = {"help", "version", *made.marked("changes no number")}
    for action in made._actions:
        if action.dest in ("help", "version", "config"):
            continue
        given = [] if action.nargs == 0 else ["x" if action.type is None else "7"]
        flag = action.option_strings[0]
        said = command_line(read_options([flag, *given]))
        assert (f" {flag}" in said) == (action.dest not in without), flag


def test_options_of_the_output_change_no_number():
    group = next(group for group in parser()._action_groups if group.title == "output")
    assert {action.dest for action in group._group_actions} <= set(parser().marked("changes no number"))


def test_every_setting_of_an_evaluation_is_a_keyword_of_evaluate():
    names = {field.name for field in dataclasses.fields(EvaluationSettings)}
    keywords = inspect.signature(evaluate).parameters
    assert names <= set(keywords)
    assert all(keywords[name].default is None for name in names)
    for where in (EvaluationSettings, evaluate):
        described = [line.strip().partition(":")[0] for line in where.__doc__.splitlines()]
        assert names <= set(described)
