"""Converts another project's checkpoint: ``python tools/convert.py --help``."""

from condseg.cli.convert import main

if __name__ == "__main__":
    main()
