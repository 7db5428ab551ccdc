"""condseg's training command, whose configurations may also name this study's own layers."""

import os
import sys
from pathlib import Path

from jsonargparse import set_parsing_settings

from condseg.cli.train import main

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    from studies.comparison.variants import LAYERS

    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    set_parsing_settings(import_path_allowlist=[LAYERS])
    main()
