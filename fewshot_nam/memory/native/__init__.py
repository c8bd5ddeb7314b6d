"""Compiled kernels: built by the machine's own C++ compiler, kept where nobody else can write, and used in place of torch."""
