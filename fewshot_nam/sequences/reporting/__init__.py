"""Tables and plots of trained sequence models: a plan of runs, what they measured, and how it is shown."""

from fewshot_nam.sequences.reporting.plan import Experiment, carry_out, load_plan
from fewshot_nam.sequences.reporting.records import Record, read_records, read_runs, write_records
from fewshot_nam.sequences.reporting.tables import table

__all__ = ["Experiment", "Record", "carry_out", "load_plan", "read_records", "read_runs", "table", "write_records"]
