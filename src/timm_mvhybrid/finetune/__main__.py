"""``python -m timm_mvhybrid.finetune``, for torchrun, which starts modules: the command ``timm-mvhybrid finetune``."""

import sys

from ..cli import main as command_line


def main() -> int:
    """Runs the command."""
    return command_line(["finetune", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
