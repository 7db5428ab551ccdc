"""``python -m condseg``: the command ``condseg``."""

from condseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
