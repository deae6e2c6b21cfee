"""``python -m timm_mvhybrid.pretrain``, for torchrun, which starts modules."""

import os
import sys
import warnings

from ..data import DataError
from ..models import CheckpointError
from ..runtime.printable import printable
from .command import Pretrain, parse
from .errors import PretrainError


def main() -> int:
    """Runs the command.

    Returns:
        The exit code.
    """
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    try:
        return parse(sys.argv[1:], "python -m timm_mvhybrid.pretrain").run() or 0
    except (DataError, CheckpointError, PretrainError) as error:
        print(printable(f"{rank}error: {' '.join(str(error).split())}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{rank}interrupted; {Pretrain.when_interrupted}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_, **__: print(printable(f"warning: {message}"), file=sys.stderr)
    sys.exit(main())
