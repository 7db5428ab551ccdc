"""Lists the published models: ``python tools/models.py --help``."""

from condseg.cli.models import main

if __name__ == "__main__":
    main()
