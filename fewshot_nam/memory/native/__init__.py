"""Compiled code: one builder (``native_build``) for the whole project, and the kernels of the memory networks (``kernels``)."""
