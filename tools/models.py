"""Lists the published models: ``python tools/models.py --help``."""

import sys

from condseg.cli.models import main

if __name__ == "__main__":
    sys.exit(main())
