"""`python -m robustad` is the command `robustad`."""

import sys

from robustad.cli import main

if __name__ == "__main__":
    sys.exit(main())
