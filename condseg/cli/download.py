"""Downloads COCO 2017: 20 GB, which need 41 GB of disk while unpacking and 22 GB afterwards.

The same command resumes an interrupted download.

condseg download                                    # to data/coco
condseg download --folder /data/coco --only val2017 annotations
"""

import argparse
from collections.abc import Sequence

from condseg.cli.messages import command_parser
from condseg.data.download import BASE_URL, COCO_2017, download
from condseg.errors import user_errors


def parser() -> argparse.ArgumentParser:
    """Of the command's options."""
    parser = command_parser(__doc__)
    parser.add_argument("--folder", default="data/coco", help="destination (data/coco)")
    parser.add_argument("--base-url", default=BASE_URL, help=f"a mirror of {BASE_URL}")
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files")
    parser.add_argument(
        "--only",
        choices=(parts := [a.holds for a in COCO_2017]),
        nargs="+",
        metavar="PART",
        help=f"parts to download: {', '.join(parts)}",
    )
    return parser


def main(args: Sequence[str] | None = None) -> None:
    options = parser().parse_args(args)
    archives = [a for a in COCO_2017 if options.only is None or a.holds in options.only]
    with user_errors():
        download(options.folder, archives, options.base_url, keep_archives=options.keep_archives)
    print(f"{options.folder}: {', '.join(archive.holds for archive in archives)} in place")
