"""Fetches COCO 2017 (20 GB): ``python tools/download_coco.py``; given again, it goes on."""

from __future__ import annotations

import argparse

from condseg.data.download import BASE_URL, COCO_2017, download
from condseg.errors import user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", default="data/coco", help="where it goes (data/coco)")
    parser.add_argument("--base-url", default=BASE_URL, help=f"a mirror of {BASE_URL}")
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files")
    parser.add_argument(
        "--only",
        choices=[archive.holds for archive in COCO_2017],
        nargs="+",
        help="some of the parts",
    )
    options = parser.parse_args()
    archives = [a for a in COCO_2017 if options.only is None or a.holds in options.only]
    with user_errors():
        download(options.folder, archives, options.base_url, keep_archives=options.keep_archives)
    print(f"{options.folder}: {', '.join(archive.holds for archive in archives)} in place")


if __name__ == "__main__":
    main()
