"""``python -m trio_overlay``: the same as ``trio-overlay``."""

import sys

from trio_overlay.cli import main

if __name__ == "__main__":
    sys.exit(main())
