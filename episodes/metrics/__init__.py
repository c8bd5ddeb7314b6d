"""Measures of an episode's scores, intervals over episodes, and thresholds."""
