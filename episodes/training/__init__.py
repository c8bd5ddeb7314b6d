"""Heads that are trained in episodes: weight generators, MAML and ANIL."""
