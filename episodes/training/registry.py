"""The heads that are trained on episodes before they are used: importing this module adds them to the registry of heads.

It imports no head and no torch, so that ``fewshot-nam-eval --help`` can list them at once.
"""

from __future__ import annotations

from fewshot_nam.heads.registry import HeadSpec, register

META_LEARNED = {
    "maml": "MAML (learn2learn): a small network, all layers adapted from a meta-learned initialisation",
    "anil": "ANIL (learn2learn): a small network, its last layer adapted from a meta-learned initialisation",
}
"""The algorithms of ``episodes.training.meta_learning``, each with one line about it."""

for _algorithm, _summary in META_LEARNED.items():
    register(
        HeadSpec(
            _algorithm,
            "episodes.training.meta_learning:MetaLearnedHead",
            _summary,
            needs="prototypes",
            uses_base=True,
            requires="learn2learn",
            train="episodes.training.meta_learning:meta_train",
        )
    )

_EPISODIC = {
    "feat": ("feat:FEATHead", "FEAT: prototypes adapted to one another by a trained attention"),
    "relation": (
        "relation:RelationHead",
        "Relation Network: a small trained network scores pairs of prototype and query",
    ),
}
for _name, (_build, _summary) in _EPISODIC.items():
    register(
        HeadSpec(
            _name,
            f"episodes.training.{_build}",
            _summary,
            needs="prototypes",
            uses_base=True,
            train="episodes.training.episodic:train_on_episodes",
        )
    )
