"""Evaluation of heads on episodes: settings, scoring, comparison."""
