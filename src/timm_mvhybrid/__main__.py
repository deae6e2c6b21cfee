"""``python -m timm_mvhybrid`` → the command line."""

import sys

from timm_mvhybrid.cli import main

if __name__ == "__main__":
    sys.exit(main())
