"""Images that a backbone was trained on: figures of them say little of new ones, and are comparable with few."""

from __future__ import annotations

from collections.abc import Mapping

CONV4 = "ff67e3be25d6e7ba0102ec410270ba43baf630e4747fdfdfe27d4e135aec7599"  # ``weights_hash`` of the weights that come with conv4

_SEEN = {
    "omniglot/base": "conv4's own weights were trained on every drawing of these base characters, base queries too: figures of "
    "base classes, and those that they are part of, are of images that the backbone has seen",
    "omniglot-fscil": "conv4's own weights were trained on other drawings of most base classes, base queries among them: these "
    "figures are not comparable with published ones; --weights takes what scripts/pretrain_omniglot_fscil.py makes",
}


def seen_in_training(provenance: Mapping[str, str]) -> list[str]:
    """Return what a report must say where base queries are images that their backbone was trained on.

    Args:
        provenance: of the features of the base queries, as ``extract`` notes it.
    """
    if provenance.get("weights_hash") != CONV4:
        return []
    dataset = provenance.get("dataset", "")
    return [note for name, note in _SEEN.items() if dataset == name or dataset.startswith(f"{name}/")]
