"""Attacks that are fitted before any client answers: simulated clients, what is read of them, decoders."""
