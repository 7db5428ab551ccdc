"""Box and mask AP of a checkpoint: ``python tools/eval.py --help``."""

from condseg.cli.eval import main

if __name__ == "__main__":
    main()
