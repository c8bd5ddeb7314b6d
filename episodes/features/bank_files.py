"""Files of feature banks: written atomically, and mapped into memory when read.

A bank is one safetensors file: the tensors ``features`` (n, D) and ``labels`` (n,), and the metadata ``fewshot_bank``, JSON
with ``format``, ``classes`` and ``provenance``. Reading maps the file: rows are read from disk when they are first used, and the
operating system may drop them again, so a bank may be larger than memory. Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from episodes.data.class_names import Label, odd_name
from fewshot_nam.io.regular_files import open_regular
from fewshot_nam.io.tensor_files import write_tensors

BANK_FORMAT = 1
_METADATA_KEY = "fewshot_bank"
_MOST_CLASSES_BEYOND_ROWS = 1 << 16  # a class may be without rows, but not millions of them
_MOST_TIMES_PACKED = 200  # features of rectified networks pack to a tenth; zeros pack to a thousandth


class NotABank(ValueError):
    """A file that is not a feature bank, is cut short, or was written by a later version. The message names it."""


def write_bank_file(
    path: Path, features: Tensor, labels: Tensor, classes: list[Label], provenance: dict[str, str]
) -> None:
    """Write a bank to ``path``; see ``FeatureBank.save``."""
    if (reason := odd_name(classes)) is not None:
        raise ValueError(f"{path}: {reason}")
    content = {"format": BANK_FORMAT, "classes": classes, "provenance": provenance}
    write_tensors(path, {"features": features, "labels": labels}, {_METADATA_KEY: json.dumps(content)})


def read_bank_file(path: Path) -> dict[str, Any]:
    """Return the arguments of the ``FeatureBank`` in ``path``; see ``FeatureBank.load``.

    Raises:
        FileNotFoundError: there is no such file.
        NotABank: a file of another kind, cut short, or of a later format.
    """
    with open_regular(path) as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    return _read_npz(path) if is_zip else _read_safetensors(path)


def _foreign(path: Path, reason: object) -> NotABank:
    detail = " ".join(str(reason).split())
    detail = detail if len(detail) <= 300 else f"{detail[:300]}..."  # zipfile puts all that it found in the file there
    return NotABank(
        f"{path}: not a whole feature bank ({detail}); expected a file of FeatureBank.save, or an .npz with features and labels"
    )


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            described = (file.metadata() or {}).get(_METADATA_KEY)
            if described is None:
                raise _foreign(path, f"a safetensors file without {_METADATA_KEY!r} in its metadata")
            content = json.loads(described)
            _check_content(path, content, file.get_slice("labels").get_shape()[0])
            if content["format"] > BANK_FORMAT:
                raise NotABank(
                    f"{path}: bank format {content['format']}, and this version reads up to {BANK_FORMAT}; update the toolkit"
                )
            tensors = {name: file.get_tensor(name) for name in ("features", "labels")}
            return {**tensors, "classes": content["classes"], "provenance": content["provenance"]}
    except (SafetensorError, json.JSONDecodeError, KeyError, IndexError, RecursionError, TypeError) as error:
        raise _foreign(path, error) from error


def _check_content(path: Path, content: Any, rows: int) -> None:
    """Raise ``NotABank`` for a description that ``write_bank_file`` does not write."""
    fits = (
        isinstance(content, dict)
        and type(content["format"]) is int
        and content["format"] >= 1
        and isinstance(content["classes"], list)
        and isinstance(content["provenance"], dict)
        and all(isinstance(value, str) for value in content["provenance"].values())
    )
    if not fits:
        raise _foreign(path, "its description is damaged")
    skipped = json.loads(content["provenance"].get("skipped", "[]"))
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise _foreign(path, "its list of skipped images is damaged")
    if len(content["classes"]) > max(rows, _MOST_CLASSES_BEYOND_ROWS):
        raise _foreign(path, f"it names {len(content['classes']):,} classes of {rows:,} rows")
    if (reason := odd_name(content["classes"])) is not None:
        raise _foreign(path, reason)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = {"features", "labels"} - set(archive.files)
            if missing:
                raise ValueError(f"it has no {' and no '.join(sorted(missing))}, but {sorted(archive.files)}")
            _check_arrays(path, archive.files)
            content = {name: archive[name] for name in ("features", "labels", "classes") if name in archive.files}
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds of errors on broken files
        raise _foreign(path, error) from error
    if "classes" in content:
        return {**content, "classes": content["classes"].ravel().tolist()}
    return content


def _check_arrays(path: Path, names: list[str]) -> None:
    """Raise ``ValueError`` for arrays that do not fit together, or that a small file claims, before any is unpacked."""
    shapes: dict[str, tuple[int, ...]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in {"features", "labels", "classes"} & set(names):
            member = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
            if member.file_size > _MOST_TIMES_PACKED * member.compress_size + (1 << 20):
                raise ValueError(f"its {name} unpack to more than {_MOST_TIMES_PACKED} times their size in the file")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shapes[name], _, dtype = read(file)
            if not dtype.hasobject and math.prod(shapes[name]) * dtype.itemsize > member.file_size:
                raise ValueError(f"its {name} claim {shapes[name]} and are shorter")
    rows = math.prod(shapes["labels"])
    if len(shapes["features"]) != 2 or shapes["features"][0] != rows:
        raise ValueError(f"its features are {shapes['features']}, for {rows} labels")
    if math.prod(shapes.get("classes", ())) > max(rows, _MOST_CLASSES_BEYOND_ROWS):
        raise ValueError(f"it names {math.prod(shapes['classes']):,} classes of {rows:,} rows")
