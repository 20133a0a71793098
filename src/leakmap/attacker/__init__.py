"""The side that sees an Observation and nothing else."""
