"""The parts of the report: plan, records, statistics, figures, pages. The command is `experiments.report`."""
