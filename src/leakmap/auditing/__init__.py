"""An audit: from a plan to stages, runs, verdict and result."""
