"""``python -m relax``: the command line."""

import sys

from relax.cli import main

if __name__ == "__main__":
    sys.exit(main())
