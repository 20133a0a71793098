"""How much leaked: metrics, the line-up, floors, intervals and the verdict."""

GALLERY = 100
"""Candidates in a line-up, the truth among them, where nobody says another number."""
