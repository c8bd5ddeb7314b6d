"""Train an agent with a memory: ``python scripts/train_agent.py --env recall --model lstm-stm --out DIR``.

``--resume`` goes on where a killed run was; ``--evaluate DIR`` measures a trained one. See ``--help``.
"""

from fewshot_nam.cli.train_agent import main

if __name__ == "__main__":
    raise SystemExit(main())
