"""Draws the instances that a checkpoint finds in images: ``python tools/demo.py --help``."""

from condseg.cli.predict import main

if __name__ == "__main__":
    raise SystemExit(main())
