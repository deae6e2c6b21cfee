"""``python -m timm_mvhybrid.pretrain``, for torchrun, which starts modules."""

import os
import sys
import warnings

from ..runtime.errors import TimmMVHybridError, one_sentence
from ..runtime.implementation_request import check_request, requested_by_environment
from ..runtime.printable import printable
from ..runtime.standard_output import standard_output
from .command import Pretrain, parse


def main() -> int:
    """Runs the command.

    Returns:
        The exit code.
    """
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    try:
        with standard_output():
            check_request(requested_by_environment())
            return parse(sys.argv[1:], "python -m timm_mvhybrid.pretrain").run() or 0
    except (TimmMVHybridError, OSError) as error:
        print(f"{rank}error: {one_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{rank}interrupted; {Pretrain.when_interrupted}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_, **__: print(printable(f"warning: {message}"), file=sys.stderr)
    sys.exit(main())
