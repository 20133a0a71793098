"""One algorithm of each kind, which leakmap finds where this package is installed."""
