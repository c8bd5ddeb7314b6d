"""The command ``fewshot-nam``: teach classes from pictures, recognise, forget, calibrate and export, with one file for a memory.

Nothing heavy is imported before the options are understood: ``--help`` answers at once.
"""
