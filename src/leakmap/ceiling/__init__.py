"""What no attacker can exceed where Gaussian noise hides a bounded contribution: mathematics of numbers alone."""
