"""Where the command ``fewshot-nam-eval`` begins: an interrupt ends it in one line, also while the rest is imported."""

from fewshot_nam.cli.starting import start


def fewshot_nam_eval() -> int:
    """Run ``fewshot-nam-eval``."""
    return start("episodes.cli.main")
