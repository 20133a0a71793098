"""One run of an attack on a client, where runs are computed, and where their outcomes lie."""
