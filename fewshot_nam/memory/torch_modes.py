"""Which of torch's modes are active: autocast, ``torch.func``, ``torch.export``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast, which would round a memory at every step, if ``device`` supports autocast."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def autocasts(device: torch.device) -> bool:
    """Return whether autocast is on for a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def needs_plain_autograd() -> bool:
    """Return whether we are inside ``torch.func`` or ``torch.export``, which cannot use a hand-written backward."""
    if torch.compiler.is_compiling():
        # Older releases of torch cannot tell export from compilation.
        return bool(getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)())
    return torch._C._functorch.peek_interpreter_stack() is not None
