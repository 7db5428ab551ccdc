"""Lists the published models: ``python tools/models.py``; docs/models.md shows the same."""

from condseg.zoo.published import tables

if __name__ == "__main__":
    print(tables(), end="")
