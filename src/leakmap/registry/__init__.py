"""Names for algorithms: how one is written down, found and built, and how a user's own code is loaded."""
