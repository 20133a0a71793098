"""``python -m leakmap``."""

from leakmap.cli.main import main

if __name__ == "__main__":
    main()
