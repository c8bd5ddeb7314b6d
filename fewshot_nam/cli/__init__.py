"""The command ``fewshot-nam``: teach classes from images, recognise, forget, calibrate and export, with one file for a memory.

Nothing heavy is imported before the options are parsed, so that ``--help`` is fast.
"""
