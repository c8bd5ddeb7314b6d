"""Old names that keep working for one version: parameters, names of a module, attributes of a class, and modules.

Each use of an old name gives one ``DeprecationWarning`` that names the successor and the version that removes the old name.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from fewshot_nam._moved_modules import MOVED_MODULES

REMOVED_IN = "0.2"
"""The version that removes what is deprecated in this one."""

# Modules whose inner functions "call" wrap a function that takes old words: of several wrappers, none is the caller to blame.
_WRAPPERS = {
    ("fewshot_nam._deprecation", "call"),
    ("fewshot_nam.heads.base_statistics", "call"),
    ("fewshot_nam.heads.registry", "create"),
}

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, version: str = REMOVED_IN, *, stacklevel: int = 2) -> None:
    """Warn that ``old`` is deprecated and that ``new`` replaces it.

    Args:
        old: the old name, as a user writes it.
        new: what to write in its place.
        version: the version that removes ``old``.
        stacklevel: as in ``warnings.warn``: 2 blames the caller of the function that calls this one.
    """
    frame = sys._getframe(stacklevel)
    while frame.f_back is not None and (frame.f_globals.get("__name__"), frame.f_code.co_name) in _WRAPPERS:
        stacklevel, frame = stacklevel + 1, frame.f_back
    warnings.warn(
        f"{old} is deprecated and will be removed in {version}: use {new}",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def renamed_parameter(old: str, new: str, version: str = REMOVED_IN) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that lets a function take the keyword ``old`` for its parameter ``new``.

    Args:
        old: the old keyword.
        new: the parameter that takes its value.
        version: the version that removes ``old``.

    The decorated function lists all its old keywords in ``renamed``, for what has to read settings that were saved under them.

    Raises:
        TypeError: when the decorated function is called with both.

    Example:
        >>> @renamed_parameter("colour", "color")
        ... def paint(*, color):
        ...     return color
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     paint(colour="red")
        'red'
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                name = function.__qualname__.removesuffix(".__init__")
                if new in kwargs:
                    raise TypeError(f"{name}: {old} is the old name of {new}: give {new} alone")
                warn_renamed(f"{name}: {old}=", f"{new}=", version)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        vars(call)["renamed"] = {**getattr(function, "renamed", {}), old: new}
        return call

    return decorate


def renamed_names(module: str, names: Mapping[str, str], version: str = REMOVED_IN) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module that gives the successors of its old names.

    Args:
        module: the module's ``__name__``.
        names: old name to new name. A new name with dots is the full path of an attribute of another module.
        version: the version that removes the old names.

    Example::

        __getattr__ = renamed_names(__name__, {"UnreadablePicture": "UnreadableImage"})
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].rpartition(".")
        home = home or module
        warn_renamed(f"{module}.{name}", f"{home}.{new}", version)
        return getattr(importlib.import_module(home), new)

    return get


def renamed_attribute(old: str, new: str, version: str = REMOVED_IN) -> property:
    """Return a read-only property that gives the attribute ``new`` and warns that ``old`` is deprecated.

    Args:
        old: the name the property is assigned to.
        new: the attribute of the same object that replaces it.
        version: the version that removes ``old``.

    Example::

        class Dataset:
            pictures = renamed_attribute("pictures", "images")
    """

    def get(self: Any) -> Any:
        warn_renamed(f"{type(self).__name__}.{old}", new, version)
        return getattr(self, new)

    return property(get, doc=f"Deprecated: use ``{new}``.")


def forward_moved_modules(package: str) -> None:
    """Let the old paths of ``package``'s modules import the modules where they are now.

    Each of our packages calls this for itself, so that a user's own ``backbones`` or ``episodes`` is never touched.

    Args:
        package: "fewshot_nam", "episodes" or "backbones".
    """
    moved = {old: new for old, new in MOVED_MODULES.items() if old.startswith(package + ".")}
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "package", None) != package]
    # First, because the directory backbones/weights would otherwise be taken for the old module backbones.weights.
    sys.meta_path.insert(0, _MovedModules(package, moved))


class _MovedModules(MetaPathFinder, Loader):
    """Finds modules by their old paths, and loads the modules they are now."""

    def __init__(self, package: str, moved: Mapping[str, str]) -> None:
        self.package = package
        self.moved = moved
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self.moved else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        old, new = spec.name, self.moved[spec.name]
        # Import of a package's old path comes before that of its modules, which warn for both.
        if not any(path.startswith(old + ".") for path in self.moved):
            warn_renamed(old, new)
        module = importlib.import_module(new)
        self._specs[new] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has given the module the spec of its old path.
        module.__spec__ = self._specs.pop(module.__name__)
