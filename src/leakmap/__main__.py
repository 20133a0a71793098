"""``python -m leakmap``."""

from leakmap.cli import main

if __name__ == "__main__":
    main()
