"""Downloads COCO 2017: ``python tools/download_coco.py --help``."""

from condseg.cli.download import main

if __name__ == "__main__":
    main()
