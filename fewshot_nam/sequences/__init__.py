"""Sequence tasks, models and training for the memory networks of ``fewshot_nam.memory`` and the baselines of their papers.

- ``fewshot_nam.sequences.tasks``: ``tasks.create("reverse")`` draws batches of tokens, targets and masks.
- ``fewshot_nam.sequences.models``: ``models.create("nam-tm", task)`` maps tokens to logits.
"""
