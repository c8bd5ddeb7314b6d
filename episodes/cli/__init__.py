"""The command ``fewshot-nam-eval``."""
