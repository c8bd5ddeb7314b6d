"""Train the sequence models of ``results/sequences/plan.yaml``, and write tables and plots: ``--runs DIR``. See ``--help``."""

from fewshot_nam.cli.sequence_results import main

if __name__ == "__main__":
    raise SystemExit(main())
