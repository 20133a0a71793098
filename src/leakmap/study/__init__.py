"""Studies: many audits, the product of axes, run wherever there is room and resumed by identity."""

from leakmap.study.file import Cell, Study, read_study

__all__ = ["Cell", "Study", "read_study"]
