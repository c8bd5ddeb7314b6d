"""Scoring of episodes with several heads at once, and the measures of what came out.

A batch of episodes is gathered from the bank once and shown to every head. What is fixed beforehand (temperature, and with
validation classes thresholds and novel bias) is chosen here too, on other episodes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from episodes.features.bank import FeatureBank
from episodes.metrics.scores import Scores, widened
from episodes.sampling.sampler import Episodes
from fewshot_nam.heads import Head
from fewshot_nam.heads.gather_free_scoring import Picker, familiarities_of, read_picked


class Scorer:
    """Scores episodes of one bank with every head.

    Args:
        bank: what support, known and unknown queries index.
        heads: by name; already on ``device``.
        device: where to compute.
        base_queries: what base queries index; ``None`` outside the generalized protocol.
        base_prototypes: by name of the head, ``(B, D)`` of the classes that share the label space; likewise.
        pictures: about how many will be scored, each as often as it comes up in an episode; ``None`` for many. Where they are
            fewer than the bank has, nothing is found out beforehand about all of the bank.
    """

    def __init__(
        self,
        bank: FeatureBank,
        heads: Mapping[str, Head],
        device: torch.device,
        base_queries: FeatureBank | None = None,
        base_prototypes: Mapping[str, Tensor] | None = None,
        pictures: int | None = None,
    ) -> None:
        self.heads, self.device = heads, device
        self._features = bank.features.to(device)
        self._base_features = None if base_queries is None else base_queries.features.to(self._features)
        self._own = threading.local()  # pickers of each thread: their buffers are used again
        self._prototypes = {name: rows.to(device) for name, rows in (base_prototypes or {}).items()}
        self._without_features = not self._prototypes and base_queries is None
        worthwhile = self._without_features and (pictures is None or pictures >= len(bank))
        found = {name: familiarities_of(head, self._features) for name, head in heads.items() if worthwhile}
        self._familiarities = {name: values for name, values in found.items() if values is not None}

    @property
    def threads(self) -> int:
        """How many threads to score in: as many as torch may use, and one for a device that works by itself."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    @torch.inference_mode()
    def score(self, episodes: Episodes) -> Iterator[tuple[str, Scores]]:
        """Yield every head's name and scores of some episodes.

        Raises:
            ValueError: a head gives NaN or infinite scores.
        """
        ways = episodes.classes.shape[1]
        num_base = max(map(len, self._prototypes.values()), default=0)
        known, unknown = episodes.query.flatten(1), episodes.unknown.flatten(1)
        query = torch.cat([known, unknown], dim=1)
        parts = [known.shape[1], unknown.shape[1], episodes.base_query.shape[1]]
        targets = num_base + torch.arange(ways, device=self.device).repeat_interleave(parts[0] // ways)
        found: dict[str, Tensor] = {}
        if self._without_features:
            found = read_picked(self.heads, self._pickers()[0], episodes.support, query, self._familiarities)
        others = {name: head for name, head in self.heads.items() if name not in found}
        found |= self._gathered(others, episodes, query)
        for name in self.heads:
            scores = found.pop(name)
            if scores.shape != (len(episodes), query.shape[1] + parts[2], num_base + ways):
                raise ValueError(
                    f"the head {name!r} gave scores of shape {tuple(scores.shape)}, expected "
                    f"{(len(episodes), query.shape[1] + parts[2], num_base + ways)}: episodes, queries, classes"
                )
            if not bool(torch.stack(scores.aminmax()).isfinite().all()):  # both are NaN where any score is
                raise ValueError(f"the head {name!r} gave scores that are NaN or infinite for these features")
            of_known, of_unknown, of_base = torch.split(widened(scores), parts, dim=1)
            yield (
                name,
                Scores(
                    of_known,
                    targets,
                    of_unknown if parts[1] else None,
                    of_base if parts[2] else None,
                    episodes.base_classes.to(self.device) if parts[2] else None,
                    num_base,
                ),
            )

    def _gathered(self, heads: Mapping[str, Head], episodes: Episodes, query: Tensor) -> dict[str, Tensor]:
        """Return the scores of heads that look at the features themselves, which are gathered once for all of them."""
        if not heads:
            return {}
        bank, base = self._pickers()
        pictures = episodes.support[0].numel() + query.shape[1] + episodes.base_query.shape[1]
        found: dict[str, list[Tensor]] = {name: [] for name in heads}
        for part in bank.parts(len(episodes), pictures):
            support, queries = bank.gather("support", episodes.support[part]), bank.gather("query", query[part])
            if base is not None:
                queries = torch.cat([queries, base.gather("base", episodes.base_query[part])], dim=1)
            for name, head in heads.items():
                # Every row was checked when the bank was made.
                found[name].append(head.score_episodes(support, queries, self._prototypes.get(name), check=False))
        return {name: torch.cat(scores) if len(scores) > 1 else scores[0] for name, scores in found.items()}

    def _pickers(self) -> tuple[Picker, Picker | None]:
        if not hasattr(self._own, "pickers"):
            base = None if self._base_features is None else Picker(self._base_features)
            self._own.pickers = Picker(self._features), base
        pickers: tuple[Picker, Picker | None] = self._own.pickers
        return pickers
