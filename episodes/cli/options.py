"""The options of ``fewshot-nam-eval``: flags, and a YAML file that may give any of them.

Nothing heavy is imported here, so that ``--help`` prints at once.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import episodes.training.registry  # noqa: F401  registers MAML and ANIL as heads
from episodes.data import registry
from episodes.metrics.registry import MEASURES, PROTOCOLS, short_table
from fewshot_nam import __version__
from fewshot_nam.heads.open_scores import registry as open_scores
from fewshot_nam.heads.registry import specs, transductive
from fewshot_nam.io.yaml_input import read_yaml, safe_loader, shown
from fewshot_nam.vision.libraries import names

COMMAND = "fewshot-nam-eval"
DEFAULT_HEADS = ["nam", "nam-sequential", "cosine", "cosine-centred", "plda-snorm"]

Mark = Literal["changes no number", "in the report", "for images", "file to read", "file to write", "specification"]
"""What the command knows of an option besides its value: it is left out of the command that gives the same numbers; its value is
part of the JSON; nothing uses it where all features are given; it names a file to read or to write; or it is the specification of a
data set (``folder:DIR``)."""

_DESCRIPTION = """\
Measure few-shot heads on N-way K-shot episodes: their accuracy and their false alarms.

Without options: 5 known and 5 unknown classes of scikit-learn's handwritten digits, features of the bundled backbone,
1,000 episodes, and NAM beside cosine classifiers. Data sets are downloaded only with --download.
"""

_EXAMPLES = """\
examples:
  %(prog)s --ways 5 --shots 1
  %(prog)s --dataset omniglot --data-dir DIR --ways 20 --shots 5 --json omniglot.json
  %(prog)s --dataset folder:photos --backbone timm/resnet18 --open-ways 3 --queries 5
  %(prog)s --dataset features:bank.safetensors --heads nam cosine ridge --protocol closed
  %(prog)s --report out                      (an HTML page: out/index.html)
  %(prog)s --config run.yaml --seed 1        (flags take precedence over the file)
"""


def _epilog() -> str:
    """Return the examples, and what the columns of the table mean."""
    shown_measures = dict.fromkeys(name for protocol in PROTOCOLS for name in short_table(protocol))
    width = max(map(len, shown_measures))
    lines = [
        f"  {name:<{width}}  {MEASURES[name].better} is better: {MEASURES[name].meaning}" for name in shown_measures
    ]
    return (
        _EXAMPLES + "\nmeasures in the table (--json and --markdown have more):\n" + "\n".join(lines).replace("%", "%%")
    )


def _program() -> str:
    """Return what the user called: the installed command, or the script of the repository."""
    called = Path(sys.argv[0]).name
    return called if called == "episode_eval.py" else COMMAND


class _Parser(argparse.ArgumentParser):
    """A parser that knows the marks of its options."""

    def __init__(self, **settings: Any) -> None:
        self.marks: dict[str, tuple[Mark, ...]] = {}
        super().__init__(**settings)

    def mark(self, option: argparse.Action, *marks: Mark) -> None:
        """Mark an option."""
        self.marks[option.dest] = marks

    def marked(self, mark: Mark) -> list[str]:
        """Return the options with this mark."""
        return [name for name, marks in self.marks.items() if mark in marks]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the options)\n")


def parser() -> _Parser:
    """Return the parser of all options; each option's default is in ``parser().get_default(name)``, its marks in ``marks``."""
    made = _Parser(
        prog=_program(),
        description=_DESCRIPTION,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    episode = made.add_argument_group("episodes")
    episode.add_argument(
        "--protocol", default="open", help=f"{', '.join(PROTOCOLS[:-1])} or {PROTOCOLS[-1]} (default: %(default)s)"
    )
    episode.add_argument(
        "--ways", type=int, default=5, metavar="N", help="known classes in an episode (default: %(default)s)"
    )
    episode.add_argument(
        "--shots", type=int, default=1, metavar="K", help="images to learn a class from (default: %(default)s)"
    )
    episode.add_argument(
        "--queries", type=int, default=15, metavar="Q", help="query images of each class (default: %(default)s)"
    )
    episode.add_argument(
        "--open-ways", type=int, default=5, metavar="U", help="unknown classes in an episode (default: %(default)s)"
    )
    episode.add_argument(
        "--episodes", type=int, default=1000, metavar="E", help="number of episodes (default: %(default)s)"
    )
    episode.add_argument(
        "--seed", type=int, default=0, help="of the episodes and of a seeded split (default: %(default)s)"
    )
    episode.add_argument(
        "--dirichlet",
        type=number,
        default=None,
        metavar="A",
        help="unequally many known queries of the classes: shares from a Dirichlet distribution of concentration A, such as 2 "
        "(default: equally many)",
    )
    made.mark(
        episode.add_argument(
            "--episodes-file", metavar="FILE", help="use the episodes in FILE; if it does not exist, write them to it"
        ),
        "file to write",
    )

    heads = made.add_argument_group("heads")
    names_of_heads = [entry.name for entry in specs()]
    heads.add_argument(
        "--heads",
        nargs="+",
        metavar="HEAD",
        default=None,
        help=f"which heads to compare: {', '.join(names_of_heads)} (default: {' '.join(DEFAULT_HEADS)}); "
        f"transductive, so that all queries of an episode are scored together: {', '.join(filter(transductive, names_of_heads))}",
    )

    heads.add_argument(
        "--score",
        nargs="+",
        metavar="SCORE",
        default=None,
        help="evaluate every head with each of these open-set scores too, which then decide what is accepted: "
        f"{', '.join(open_scores.available())}; most need base classes. HEAD{open_scores.SEPARATOR}SCORE in --heads names one",
    )

    data = made.add_argument_group("images")
    made.mark(
        data.add_argument(
            "--dataset",
            default="digits",
            metavar="SPEC",
            help=registry.help_line().replace("%", "%%") + " (default: %(default)s)",
        ),
        "specification",
    )
    data.add_argument(
        "--data-dir", metavar="DIR", help=f"where the files of {', '.join(registry.taking('data_dir'))} are"
    )
    data.add_argument(
        "--download",
        action="store_true",
        help=f"fetch the data set into --data-dir if it is not there ({', '.join(registry.taking('download'))})",
    )
    made.mark(
        data.add_argument(
            "--split",
            metavar="FILE|B/V/N",
            help="classes for base, validation and novel: a YAML or JSON file, or counts, or shares",
        ),
        "file to read",
        "in the report",
    )
    made.mark(data.add_argument("--base", metavar="SPEC", help="images or features of base classes"), "specification")
    made.mark(
        data.add_argument(
            "--base-queries", metavar="SPEC", help="other images of the base classes, for the generalized protocol"
        ),
        "specification",
    )
    made.mark(
        data.add_argument(
            "--validation", metavar="SPEC", help="classes for choosing thresholds, which are then frozen"
        ),
        "specification",
    )
    made.mark(
        data.add_argument(
            "--skip-unreadable", action="store_true", help="leave out images that cannot be read, and list them"
        ),
        "in the report",
        "for images",
    )

    model = made.add_argument_group("backbone")
    made.mark(
        model.add_argument(
            "--backbone",
            default="conv4",
            metavar="NAME",
            help=names.help_line() + " (default: %(default)s)",
        ),
        "in the report",
        "for images",
    )
    made.mark(
        model.add_argument(
            "--weights",
            metavar="FILE",
            help="a weights file, or 'random' (default: the backbone's own, which timm and torchvision download)",
        ),
        "file to read",
        "for images",
    )
    for kind in ("model", "transform"):
        made.mark(
            model.add_argument(
                f"--{kind}-option",
                nargs="+",
                metavar="KEY=VALUE",
                default=None,
                help=f"options of the {kind}, such as "
                + ("pad_type=same" if kind == "model" else "input_size=160 mean=0.5 std=0.5"),
            ),
            "in the report",
            "for images",
        )

    machine = made.add_argument_group("machine")
    machine.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    made.mark(
        machine.add_argument(
            "--workers", type=int, default=0, metavar="W", help="processes that read images (default: one thread)"
        ),
        "changes no number",
    )
    made.mark(
        machine.add_argument(
            "--precision", default="float32", help="float32 or bfloat16, of the backbone (default: %(default)s)"
        ),
        "in the report",
        "for images",
    )
    made.mark(
        machine.add_argument(
            "--channels-last", action="store_true", help="lay out images and weights channels last, often faster"
        ),
        "for images",
    )
    made.mark(
        machine.add_argument(
            "--threads", type=int, default=None, metavar="T", help="processor threads (default: torch's choice)"
        ),
        "changes no number",
    )
    made.mark(
        machine.add_argument(
            "--cache-dir",
            default="auto",
            metavar="DIR",
            help="where features are cached, or 'none' (default: %(default)s)",
        ),
        "changes no number",
    )

    output = made.add_argument_group("output")
    made.mark(
        output.add_argument("--json", metavar="FILE", help="write all measures as JSON"),
        "changes no number",
        "file to write",
    )
    made.mark(
        output.add_argument("--markdown", metavar="FILE", help="write all measures as Markdown"),
        "changes no number",
        "file to write",
    )
    made.mark(
        output.add_argument(
            "--report",
            metavar="DIR",
            help="write a page with tables, figures and images of false alarms: DIR/index.html",
        ),
        "changes no number",
    )
    made.mark(
        output.add_argument("--save-features", metavar="FILE", help="write the features, for --dataset features:FILE"),
        "changes no number",
        "file to write",
    )
    made.mark(output.add_argument("--quiet", action="store_true", help="no progress bars"), "changes no number")
    made.mark(
        output.add_argument(
            "--config", metavar="FILE", help="a YAML file with any of these options; flags take precedence"
        ),
        "changes no number",
        "file to read",
    )
    return made


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options: defaults, over them the configuration file, over it the flags.

    Raises:
        ValueError: a configuration file with an unknown key or a value of the wrong kind.
        OSError: a configuration file that cannot be read.
    """
    made = parser()
    flags = made.parse_args(arguments)
    if flags.config is not None:
        made.set_defaults(**_read_config(Path(flags.config), made))
        flags = made.parse_args(arguments)
    return flags


def with_scores(heads: Sequence[str], scores: Sequence[str]) -> list[str]:
    """Return the heads, each followed by itself with every open-set score.

    Raises:
        ValueError: an unknown score.

    Example:
        >>> with_scores(["cosine", "nam"], ["knn"])
        ['cosine', 'cosine+knn', 'nam', 'nam+knn']
    """
    for score in scores:
        open_scores.spec(score)
    plus = [open_scores.SEPARATOR + score for score in scores]
    return [head + end for head in heads for end in ("", *plus)]


def command_line(options: argparse.Namespace) -> str:
    """Return the command that gives the same numbers: the options that differ from their defaults and change a number."""
    words, made = [COMMAND], parser()
    unused = {"help", "version", *made.marked("changes no number")}
    for action in made._actions:
        value = getattr(options, action.dest, None)
        if action.dest in unused or value == action.default:
            continue
        words.append(action.option_strings[0])
        if action.nargs != 0:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return shlex.join(words)


def number(word: str) -> float:
    """Return a number, whole if it is written so."""
    try:
        return int(word)
    except ValueError:
        return float(word)


def _read_config(path: Path, made: argparse.ArgumentParser) -> dict[str, Any]:
    try:
        content = read_yaml(path, _pairs_loader())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not YAML: it is not text in UTF-8") from None
    if not isinstance(content, _Pairs):
        raise ValueError(f"{path}: expected a mapping of options to values, got {type(content).__name__}")
    actions = {action.dest: action for action in made._actions if action.dest not in ("help", "version", "config")}
    found: dict[str, Any] = {}
    for key, value in content:
        name = (key if isinstance(key, str) else shown(key)).replace("-", "_")
        if name in found:
            raise ValueError(f"{path}: {shown(key)} is given twice")
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1)
            raise ValueError(
                f"{path}: no option {shown(key)}"
                + (f"; did you mean {near[0]!r}?" if near else f": there are {', '.join(actions)}")
            )
        found[name] = _as_option(path, str(key), value, actions[name])
    return found


class _Pairs(list[tuple[Any, Any]]):
    """The keys and values of a YAML mapping as they stand, a key that comes twice included."""


def _pairs_loader() -> Any:
    """Return a safe YAML loader that gives mappings as ``_Pairs``."""
    import yaml

    class Loader(safe_loader()):  # type: ignore[misc]
        pass

    Loader.add_constructor(
        yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG,
        lambda loader, node: _Pairs(loader.construct_pairs(node, deep=True)),
    )
    return Loader


def _as_option(path: Path, key: str, value: Any, action: argparse.Action) -> Any:
    """Return a YAML value as the flag would have given it."""
    several = action.nargs == "+"
    if several and isinstance(value, _Pairs) and action.dest.endswith("_option"):
        return [f"{name}={item}" for name, item in value]
    if several and isinstance(value, list) and not isinstance(value, _Pairs):
        if not value or any(isinstance(item, (list, dict)) for item in value):
            raise ValueError(f"{path}: {key} must be a list of names with at least one in it, got {shown(value)}")
        return [str(item) for item in value]
    kinds = {int: "a whole number", number: "a number"}
    wanted = "true or false" if action.nargs == 0 else kinds.get(action.type, "text")  # type: ignore[arg-type,call-overload]
    fits = {
        "true or false": isinstance(value, bool),
        "a whole number": isinstance(value, int) and not isinstance(value, bool),
        "a number": isinstance(value, int | float) and not isinstance(value, bool),
        "text": isinstance(value, str),
    }
    if not fits[wanted]:
        raise ValueError(f"{path}: {key} must be {wanted}, got {shown(value)}")
    return [value] if several else value
