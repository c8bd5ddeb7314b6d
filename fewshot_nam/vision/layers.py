"""Features from any network: the input of its classifier, or the output of a named layer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Pool = Callable[[Any], Tensor]


class LayerFeatures(nn.Module):
    """A network up to one of its layers; what follows that layer is not run.

    Where the network runs the layer several times in a forward pass, the first counts.

    Args:
        model: takes images ``(B, C, H, W)``; not copied.
        layer: the name of a submodule, as in ``model.named_modules()``.
        at_input: take the layer's input, not its output.
        pool: maps what was taken to features ``(B, D)``; ``None`` leaves ``(B, D)`` and averages
            ``(B, D, H, W)`` over height and width.

    Raises:
        ValueError: the network has no such layer, or it is one of TorchScript, in which none can be read.
    """

    def __init__(self, model: nn.Module, layer: str, at_input: bool, pool: Pool | None = None) -> None:
        super().__init__()
        self.model, self.layer, self.pool = model, layer, pool
        self.at_input = at_input
        # A permanent hook, idle unless this thread is in ``forward``: several threads may use the network, and others may run it
        # as before at the same time.
        self._active = _Active()
        self._hook = self._tap(find_layer(model, layer))

    def replace(self, module: nn.Module) -> None:
        """Replace the layer by ``module``, and take features there from now on."""
        self._hook.remove()
        self.model.set_submodule(self.layer, module)
        self._hook = self._tap(module)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features ``(B, D)`` of images ``(B, C, H, W)``.

        Raises:
            ValueError: the layer was not reached, or gave neither ``(B, D)`` nor ``(B, D, H, W)`` and there is no ``pool``.
        """
        self._active.now = True
        try:
            self.model(images)
        except _Reached as reached:
            return self.pooled(reached.taken)
        finally:
            self._active.now = False
        raise ValueError(
            f"layer {self.layer!r} took no part in the forward pass of {type(self.model).__name__}: name another"
        )

    def _tap(self, layer: nn.Module) -> RemovableHandle:
        if isinstance(layer, torch.jit.ScriptModule):
            raise ValueError(
                f"layer {self.layer!r} is of TorchScript, where none can be read: attach to the model that this was made from"
            )
        if self.at_input:
            return layer.register_forward_pre_hook(self._before)
        return layer.register_forward_hook(self._after)

    def _before(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._active.now:
            raise _Reached(inputs[0] if inputs else None)

    def _after(self, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if self._active.now:
            raise _Reached(output)

    def pooled(self, taken: Any) -> Tensor:
        """Return what was taken at the layer as features ``(B, D)``.

        Raises:
            ValueError: it is neither ``(B, D)`` nor ``(B, D, H, W)`` and there is no ``pool``.
        """
        if self.pool is not None:
            return self.pool(taken)
        if isinstance(taken, Tensor) and taken.dim() == 4:
            return taken.mean(dim=(2, 3))
        if isinstance(taken, Tensor) and taken.dim() == 2:
            return taken
        kind = tuple(taken.shape) if isinstance(taken, Tensor) else type(taken).__name__
        raise ValueError(
            f"layer {self.layer!r} gives {kind}, which is neither (B, D) nor (B, D, H, W): pass pool= to make features (B, D) of it"
        )


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """Return the submodule of that name; ``ValueError`` lists the model's last layers."""
    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        last = ", ".join(list(modules)[-8:])
        raise ValueError(
            f"{type(model).__name__} has no layer {layer!r}; its last are: {last} (model.named_modules() lists all)"
        )
    return modules[layer]


class _Reached(BaseException):
    """Carries what was taken out of the forward pass. Not an ``Exception``, which a model might catch."""

    def __init__(self, taken: Any) -> None:
        super().__init__()
        self.taken = taken


class _Active(threading.local):
    """Whether this thread is extracting features. A copy of a model gets a new one."""

    now = False

    def __reduce__(self) -> tuple[type[_Active], tuple[()]]:
        return _Active, ()
