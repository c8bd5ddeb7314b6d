"""One line for a file whose content cannot be used, whatever is raised while it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def naming(path: str | os.PathLike[str], meaning: str) -> Iterator[None]:
    """Turn whatever the block raises into one ``ValueError`` that names a file; an ``OSError``, such as no access, stays.

    Args:
        path: the file, whose content the block uses; nothing else belongs into the block.
        meaning: what it is not, such as "is no plan".

    Example:
        >>> with naming("result.json", "holds no results"):
        ...     {}["results"]
        Traceback (most recent call last):
        ValueError: result.json holds no results: there is no 'results'
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # JSON, YAML, safetensors and torch raise many kinds
        reason = " ".join(str(error).split())
        reason = f"there is no {reason}" if isinstance(error, KeyError) else reason or type(error).__name__
        raise ValueError(f"{os.fspath(path)} {meaning}: {reason[:300]}") from None
