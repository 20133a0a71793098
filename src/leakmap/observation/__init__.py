"""What the attacker holds, as data and as a file."""
