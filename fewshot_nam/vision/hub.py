"""A model that has learned on the Hugging Face Hub: ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``.

A repository holds ``memory.safetensors``, which ``NAMModel.save`` writes; ``config.json``, which describes it; and a ``README.md``.
It holds no weights of the backbone, which are published elsewhere; their digest is in the file.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from fewshot_nam.io.one_line import one_line
from fewshot_nam.vision.finding import find_parts
from fewshot_nam.vision.libraries.common import LibraryNotInstalled
from fewshot_nam.vision.rebuilding import rebuild
from fewshot_nam.vision.saving import read_head, save_head

if TYPE_CHECKING:
    from fewshot_nam.heads import Label
    from fewshot_nam.vision.model import NAMModel

FILE = "memory.safetensors"
_HUB_OPTIONS = {"revision": None, "cache_dir": None, "force_download": False, "local_files_only": False, "token": None}
HubT = TypeVar("HubT", bound="HubMethods")


class HubMethods:
    """The methods of ``NAMModel`` for the Hub. They need ``huggingface_hub``, which is imported when one of them is called."""

    def save_pretrained(self: Any, directory: str | os.PathLike[str], **options: Any) -> str | None:
        """Write what was learned to a directory, in the form of a repository; see ``huggingface_hub.ModelHubMixin``.

        Args:
            directory: created where it is missing. An existing ``README.md`` is kept.
            options: ``push_to_hub=True`` and ``repo_id`` to upload it too, and the options of ``push_to_hub``.

        Returns:
            The address of the commit where it was uploaded, else ``None``.

        Raises:
            LibraryNotInstalled: huggingface_hub is not installed.
            OSError: the directory cannot be written, or another program has been changing its memory for five minutes.
            ValueError: its memory was changed elsewhere since it was loaded or saved here, as for ``save``.
        """
        carrier, place = _carrier()(self), Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        with self._saving(place / FILE):
            address: str | None = carrier.save_pretrained(place, **options)
        return address

    def push_to_hub(self: Any, repo_id: str, **options: Any) -> str:
        """Upload what was learned to a repository of the Hub and return the address of the commit.

        Args:
            repo_id: such as "me/shop"; created where it is missing.
            options: ``private``, ``token``, ``commit_message``, ``branch``, ...: see ``huggingface_hub.ModelHubMixin``.

        Raises:
            LibraryNotInstalled: huggingface_hub is not installed.
            OSError: no network, or no right to write there.
        """
        return _carrier()(self).push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(
        cls: type[HubT],
        where: str | os.PathLike[str],
        model: NAMModel | nn.Module | str | None = None,
        *,
        weights: bool | str | os.PathLike[str] = True,
        device: str | None = None,
        attach_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> HubT:
        """Return a model with the classes that ``save_pretrained`` or ``push_to_hub`` wrote.

        Args:
            where: a directory, or a repository of the Hub such as "me/shop".
            model: the model that it was learned with, in any form that ``attach`` takes, or attached already. ``None`` builds it
                by name, where it is one of ``backbones.create``.
            weights: for a model that is built: ``True`` for the published ones, ``False`` for random ones, or a file.
            device: for a model that is built: where to put it.
            attach_options: further arguments of ``attach``, for a ``model`` that is not attached.
            options: ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only``.

        Raises:
            LibraryNotInstalled: huggingface_hub, or the library of the backbone, is not installed.
            OSError: there is no such directory or repository, or it cannot be read.
            ValueError: a damaged file, or one that is not a model's; or another backbone, other weights or another transform.
        """
        given = {
            "made": cls,
            "given": model,
            "weights": weights,
            "device": device,
            "attach_options": dict(attach_options or {}),
        }
        carrier = _carrier()
        from huggingface_hub.errors import HFValidationError

        try:
            # Without ModelHubMixin's own, which takes arguments from config.json: nothing in that is needed.
            made: HubT = carrier._from_pretrained(
                model_id=os.fspath(where), **{**_HUB_OPTIONS, **options}, **given
            ).model
        except (OSError, HFValidationError) as error:  # the latter: no name of a repository either
            if Path(where).is_dir():
                raise
            raise OSError(f"{where}: no such directory, and the Hub does not give it: {error}") from error
        return made


@functools.cache
def _carrier() -> Any:
    """Return the class that takes a model to the Hub and back; made here, since the library may not be installed."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise LibraryNotInstalled(
            'huggingface_hub is not installed, and the Hub needs it: pip install "fewshot-nam[hub]"'
        ) from error

    class Carrier(huggingface_hub.ModelHubMixin, library_name="fewshot-nam", tags=["few-shot-learning"]):
        def __init__(self, model: NAMModel) -> None:
            self.model, self.classes = model, model.classes

        def _save_pretrained(self, save_directory: Path) -> None:
            # Without notes: what is published tells nothing of this machine, nor what else the user has shown the page.
            save_head(save_directory / FILE, self.model.head, self.model.backbone)
            about, head, _ = read_head(save_directory / FILE, self.model.head)
            self.classes = head.classes  # of the card: the model may learn meanwhile
            config = {
                key: about[key]
                for key in ("made_by", "backbone", "model_options", "transform", "weights", "head", "settings")
            }
            text = json.dumps({**config, "classes": head.classes}, indent=2, sort_keys=True)
            (save_directory / "config.json").write_text(text + "\n", encoding="utf-8")

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            revision: str | None,
            cache_dir: str | Path | None,
            force_download: bool,
            local_files_only: bool,
            token: str | bool | None,
            **model_kwargs: Any,
        ) -> Carrier:
            path = Path(model_id) / FILE
            if not Path(model_id).is_dir():
                path = Path(
                    huggingface_hub.hf_hub_download(
                        model_id,
                        FILE,
                        revision=revision,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only,
                        token=token,
                    )
                )
            return cls(_loaded(path, **model_kwargs))

        def generate_model_card(self, *args: Any, **kwargs: Any) -> huggingface_hub.ModelCard:
            data = self._hub_mixin_info.model_card_data
            return huggingface_hub.ModelCard(
                f"---\n{data.to_yaml()}\n---\n\n{_card(self.model.backbone.name, self.classes)}"
            )

    return Carrier


def _loaded(
    path: Path, made: type[NAMModel], given: Any, weights: Any, device: Any, attach_options: dict[str, Any]
) -> NAMModel:
    """Return a model with the contents of the file; ``made`` is its class, for a model that is not attached yet."""
    if isinstance(given, made):
        return given.load(path)
    if given is not None:
        return made(*find_parts(given, weights=weights, **attach_options)).load(path)
    about, head, _ = read_head(path)
    return made(rebuild(about, weights, device), head).load(path)


def _card(backbone: str, known: Sequence[Label]) -> str:
    classes = "\n".join(f"- {_escaped(str(label))}" for label in known)
    return f"""# Classes learned by a Neural Attention Memory

For the backbone `{backbone}`, whose weights are not part of this repository.

```python
from fewshot_nam import NAMModel

model = NAMModel.from_pretrained("<this repository>")
model.predict("image.jpg")
```

It knows {len(known)} classes:

{classes}
"""


def _escaped(label: str) -> str:
    """Return a label as Markdown shows it letter by letter."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", one_line(" ".join(label.split())))
