"""``python -m counterpoint`` is the command ``counterpoint``."""

import sys

from counterpoint.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
