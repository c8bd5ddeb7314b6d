"""Evaluate few-shot heads on episodes: ``python scripts/episode_eval.py --ways 5 --shots 1``. See ``--help``."""

from episodes.cli.starting import fewshot_nam_eval

if __name__ == "__main__":
    raise SystemExit(fewshot_nam_eval())
