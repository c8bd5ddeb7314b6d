"""Writing tensors to a safetensors file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fewshot_nam.io.atomic import replacing


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, of any device and in any order of memory, to a safetensors file; an old one is replaced in one step.

    Raises:
        OSError: the directory is missing or cannot be written, or the disk is full; it names ``path``, which is as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            kept = ": the old file is as it was" if Path(path).exists() else ""
            raise OSError(f"{path}: cannot be written ({error}){kept}") from error
