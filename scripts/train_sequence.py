"""Train a sequence model on a sequence task: ``python scripts/train_sequence.py --preset reduce/nam-tm --out DIR``.

``--resume`` goes on where a killed run was; ``--evaluate DIR --lengths 50 100 500`` measures a trained one. See ``--help``.
"""

from fewshot_nam.cli.train_sequence import main

if __name__ == "__main__":
    raise SystemExit(main())
