"""Writes a checkpoint as one file for other engines: ``python tools/export.py --help``."""

import sys

from condseg.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
