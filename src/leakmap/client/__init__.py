"""The side that holds the truth: pictures, clients and their rounds."""

REHEARSED = 4
"""Clients that a tuning rehearses on unless told otherwise; ``auto`` leaves their pictures whether or not one tunes, so
that a tuning and the audit after it grant the same."""
