"""Scoring of episodes with several heads at once, and the measures of what came out.

A batch of episodes is gathered from the bank once and shown to every head. What is fixed beforehand (temperature, and with
validation classes thresholds and novel bias) is chosen here too, on other episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from episodes.features.bank import FeatureBank
from episodes.metrics.scores import Scores, widened
from episodes.sampling.sampler import Episodes
from fewshot_nam.heads import Head
from fewshot_nam.heads.gather_free_scoring import GatherFreeScoring, IndexedFeatures, score_gathered


class Scorer:
    """Scores episodes of one bank with every head.

    Args:
        bank: what support, known and unknown queries index.
        heads: by name; already on ``device``.
        device: where to compute.
        base_queries: what base queries index; ``None`` outside the generalized protocol.
        base_prototypes: by name of the head, ``(B, D)`` of the classes that share the label space; likewise.
        queries: about how many will be scored, each as often as it comes up in an episode; ``None`` for many. Where they are
            fewer than the images of the bank, nothing is computed beforehand for all of the bank.
    """

    def __init__(
        self,
        bank: FeatureBank,
        heads: Mapping[str, Head],
        device: torch.device,
        base_queries: FeatureBank | None = None,
        base_prototypes: Mapping[str, Tensor] | None = None,
        queries: int | None = None,
    ) -> None:
        self.heads, self.device = heads, device
        self._bank = IndexedFeatures(bank.features.to(device))
        self._base = None
        if base_queries is not None:
            self._base = IndexedFeatures(base_queries.features.to(self._bank.features))
        self._prototypes = {name: rows.to(device) for name, rows in (base_prototypes or {}).items()}
        only_novel = self._base is None and not self._prototypes
        self._gather_free = GatherFreeScoring(self._bank, heads if only_novel else {}, queries)

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
        found = self._gather_free.score(episodes.support, query)
        others = {name: head for name, head in self.heads.items() if name not in found}
        base = None if self._base is None else (self._base, episodes.base_query)
        found |= score_gathered(others, self._bank, episodes.support, query, base, self._prototypes)
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
