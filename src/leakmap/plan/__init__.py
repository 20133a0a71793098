"""The plan of an audit: what is declared once, and what derives from it."""
