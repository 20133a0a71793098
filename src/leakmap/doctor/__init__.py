"""Updates that real clients sent: what is wrong with a capture, and what can be made of it."""
