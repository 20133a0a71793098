"""Entries: audits that others can cite and check, and the board of them."""
