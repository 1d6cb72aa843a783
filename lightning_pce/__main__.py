"""``python -m lightning_pce`` is the command ``lightning-pce``."""

import sys

from lightning_pce.cli import main

if __name__ == "__main__":  # processes that are started anew import this too
    sys.exit(main())
