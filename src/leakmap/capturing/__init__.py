"""Real updates: what a server sent and what a client returned, made into an Observation."""
