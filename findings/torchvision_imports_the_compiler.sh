#!/usr/bin/env bash
# torchvision 0.29.1, torch 2.14.1: importing torchvision imports torch's compiler, and nine tenths of the time are that.
#
# Expected: `import torch` leaves torch._dynamo to the first call of torch.compile, and so does torchvision, whose models and
# transforms need no compiler.
# Seen: torchvision.ops.roi_align asks torch._dynamo.utils for a function when it is imported, and all of torch._dynamo comes
# with it: nine tenths of the time that torchvision takes to import (1.7 to 3.7 s), as long as torch itself. timm imports
# torchvision, so that each process of a command, of torchrun and of a DataLoader that is spawned pays for it.
# Hurt: command lines that answer --help, suites that start many processes, workers that start anew.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
python="$folder/environment/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
# once before, so that nothing is compiled to bytecode or read from disk for the first time
"$python" -c "import torchvision"
"$python" - <<'PYTHON'
import subprocess
import sys
import time

import torch

ALONE = "import time, torch; start = time.perf_counter(); import torch._dynamo; print(time.perf_counter() - start)"
alone = float(subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True).stdout)
by_torch = "torch._dynamo" in sys.modules
start = time.perf_counter()
import torchvision

seconds = time.perf_counter() - start
by_torchvision = "torch._dynamo" in sys.modules
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
print("expected: torch._dynamo is imported by neither")
print(f"seen: by torch {by_torch}, by torchvision {by_torchvision}; importing torchvision after torch took {seconds:.1f} s")
print(f"importing torch._dynamo alone after torch took {alone:.1f} s")
sys.exit(0 if not by_torch and by_torchvision else 1)
PYTHON
