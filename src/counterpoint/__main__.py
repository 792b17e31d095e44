"""Runs the command ``counterpoint`` as ``python -m counterpoint``."""

import sys

from counterpoint.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
