"""The Neural Attention Memory head."""

from fewshot_nam.heads.nam.head import NAMHead

__all__ = ["NAMHead"]
