"""An audit: from a plan to setups, runs, verdict and result."""
