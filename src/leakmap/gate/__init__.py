"""The gate of continuous integration: what it found, in a line, an exit code and the files that pipelines read."""
