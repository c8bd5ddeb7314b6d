"""What a head answers after each incremental session, and where answers are kept, so that a comparison can be taken up again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from fewshot_nam.heads import Head, open_scores
from fewshot_nam.heads.base import Support
from fewshot_nam.heads.open_scores import OpenScore
from fewshot_nam.heads.temperature import fit_temperature
from fewshot_nam.heads.validation import Label
from fewshot_nam.io.tensor_files import write_tensors
from fewshot_nam.vision.saving import settings

_ROWS = 4096  # queries scored at a time
_FITTED_ON = 2000  # base images that set the temperature of an open-set score


class Run(NamedTuple):
    """One order of classes: what is learned when, and what is tested when.

    Attributes:
        classes: in the order of arrival, the ``base_classes`` base classes first.
        base: ``(n, D)``, images of base classes.
        base_targets: ``(n,)``, positions in ``classes``.
        shots: of each later session, features ``(k, D)`` and positions ``(k,)`` in ``classes``.
        queries: ``(q, D)``, all that is ever tested.
        query_targets: ``(q,)``, positions in ``classes``.
        known: for each session, positions in ``queries`` of those of classes seen so far.
        unarrived: likewise, of classes that come later.
    """

    classes: list[Label]
    base_classes: int
    base: Tensor
    base_targets: Tensor
    shots: list[tuple[Tensor, Tensor]]
    queries: Tensor
    query_targets: Tensor
    known: list[Tensor]
    unarrived: list[Tensor]

    @property
    def seen(self) -> list[int]:
        """How many classes are known after each session."""
        counts = [self.base_classes]
        for _, targets in self.shots:
            counts.append(counts[-1] + len(set(targets.tolist())))
        return counts


class Answers(NamedTuple):
    """What a head answers after one session.

    Attributes:
        best: ``(k,)``, the largest score of each known query.
        answer: ``(k,)``, its class.
        unarrived: ``(u,)``, the largest score of each query of a class that comes later.
    """

    best: Tensor
    answer: Tensor
    unarrived: Tensor


def place_of(directory: Path, name: str, head: Head, run: Run) -> Path:
    """Return the file for the answers of a head, which has learned nothing yet, to a run.

    Its name is a digest of all that the answers depend on: settings and tensors of the head (``repr`` leaves settings out), and the
    features of the run. The head's code is no part of it.
    """
    made = {at: [type(part).__name__, settings(part)] for at, part in head.named_modules() if isinstance(part, Head)}
    digest = hashlib.sha256(f"{name} {head!r} {json.dumps(made, sort_keys=True)}".encode())
    state = {key: value for key, value in head.state_dict().items() if isinstance(value, Tensor)}
    digest.update(repr([(key, value.dtype, tuple(value.shape)) for key, value in state.items()]).encode())
    for values in (
        *state.values(),
        run.base,
        run.base_targets,
        run.queries,
        run.query_targets,
        *(x for each in run.shots for x in each),
    ):
        digest.update(values.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return directory / f"{digest.hexdigest()[:32]}.safetensors"


def write_answers(path: Path, answers: list[Answers]) -> None:
    """Write what a head answered after each session to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i} {key}": value for i, each in enumerate(answers) for key, value in each._asdict().items()}
    write_tensors(path, tensors)


def read_answers(path: Path) -> list[Answers] | None:
    """Return what ``write_answers`` wrote, or None where there is no file."""
    if not path.exists():
        return None
    tensors = load_file(path)
    count = len(tensors) // len(Answers._fields)
    return [Answers(*(tensors[f"{i} {key}"] for key in Answers._fields)) for i in range(count)]


@torch.inference_mode()
def fitted_score(name: str, head: Head, run: Run) -> OpenScore:
    """Return an open-set score that knows the base classes, its scale set by what the head answers to base images."""
    score = open_scores.create(name)
    score.fit_classes(run.base, run.base_targets, run.base_classes)
    if score.uses_scores:
        step = max(1, len(run.base) // _FITTED_ON)
        images, targets = run.base[::step], run.base_targets[::step]
        column = {label: i for i, label in enumerate(run.classes)}
        scores = head(images)[:, torch.tensor([column[label] for label in head.classes]).argsort()]
        if score.fits_temperature:
            score.temperature = torch.tensor(fit_temperature(scores, targets)).to(scores)
        score.fit_scores(scores.unsqueeze(0), score.embed(images).unsqueeze(0))
    return score


def _support(score: OpenScore, run: Run, sessions: int) -> Support:
    """Return what an open-set score may know after ``sessions`` sessions: base prototypes, and the shots since then."""
    counts = torch.bincount(run.base_targets, minlength=run.base_classes).unsqueeze(-1)
    sums = torch.zeros(run.base_classes, run.base.shape[-1], dtype=torch.float64)
    means = (sums.index_add(0, run.base_targets, run.base.double()) / counts).to(run.base)
    shots = [run.base[:0], *(features for features, _ in run.shots[:sessions])]
    targets = torch.cat([run.base_targets[:0], *(its for _, its in run.shots[:sessions])])
    columns = run.seen[sessions]
    return Support(score.embed(torch.cat(shots)).unsqueeze(0), targets, score.embed(means), columns)


@torch.inference_mode()
def answers_of(head: Head, run: Run, score: OpenScore | None = None) -> list[Answers]:
    """Return what a head that knows the base classes answers after each session; a score says how sure to be."""
    looked_at = None if score is None else score.embed(run.queries)
    embedded: Tensor | None = None
    more = getattr(head, "_score_more", None)  # of heads whose scores no later class changes: each is computed once
    kept: Tensor | None = None
    found = []
    for number, (known, unarrived) in enumerate(zip(run.known, run.unarrived, strict=True)):
        if number:
            features, targets = run.shots[number - 1]
            head.write(features, [run.classes[i] for i in targets.tolist()])
        snapshot = head._snapshot()
        if embedded is None:  # what is done to each query by itself depends on no class
            rows = run.queries.to(snapshot.dtype)
            embedded = torch.cat([head._embed(some.unsqueeze(0)) for some in torch.split(rows, _ROWS)], dim=1).squeeze(
                0
            )
        column = {name: i for i, name in enumerate(run.classes)}
        of_column = torch.tensor([column[name] for name in snapshot.classes])
        asked = torch.cat([known, unarrived])
        learned = None if score is None else score.learn(_support(score, run, number))
        if more is not None:
            first = 0 if kept is None else kept.shape[1]
            added = [
                more(snapshot.learned, some.unsqueeze(0), first).squeeze(0) for some in torch.split(embedded, _ROWS)
            ]
            kept = torch.cat(added) if kept is None else torch.cat([kept, torch.cat(added)], dim=1)
        best, answer = [], []
        for some in torch.split(asked, _ROWS):
            scores = (
                head._score(snapshot.learned, embedded[some].unsqueeze(0)).squeeze(0) if kept is None else kept[some]
            )
            if not bool(scores.isfinite().all()):
                raise ValueError(f"{type(head).__name__} gave scores that are NaN or infinite for these features")
            largest, place = scores.double().max(dim=-1)
            if score is not None and looked_at is not None:
                in_order = scores[:, of_column.argsort()].unsqueeze(0)
                largest = score(in_order, learned, looked_at[some].unsqueeze(0)).squeeze(0).double()
            best.append(largest)
            answer.append(of_column[place])
        largest = torch.cat(best)
        found.append(Answers(largest[: len(known)], torch.cat(answer)[: len(known)], largest[len(known) :]))
    return found
