"""Trains a model: ``python tools/train.py --config quickstart.yaml``."""

from condseg.cli.train import main

if __name__ == "__main__":
    main()
