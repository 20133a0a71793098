"""The side that holds the truth: pictures, clients and their rounds."""
