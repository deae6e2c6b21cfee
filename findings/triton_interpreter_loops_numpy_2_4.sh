#!/usr/bin/env bash
# triton 3.2.0 (of torch 2.6) to 3.6.0, NumPy 2.4: the interpreter cannot loop over a bound that is an argument.
#
# Expected: a kernel that runs in Triton's interpreter (TRITON_INTERPRET=1) on CPU tensors goes on doing so when NumPy,
# which torch and Triton do not cap, is updated; a kernel without a loop does.
# Seen: `for i in range(0, n)`, n an argument of the kernel, ends in InterpreterError: TypeError('only 0-dimensional
# arrays can be converted to Python scalars'): the interpreter keeps a scalar as an array of shape (1,) and calls int()
# on it, which NumPy deprecated in 1.25 and refuses from 2.4 on. With NumPy 2.3.5 the same kernel runs. Triton 3.8 runs
# under both.
# Hurt: whoever tests kernels on a CPU with torch 2.6 to 2.9 and a fresh environment. Install numpy<2.4 beside them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
install() { "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check "$@"; }
install --target "$folder/torch" torch==2.6.0 triton==3.2.0
for version in 2.3.5 2.4.0; do
    install --target "$folder/numpy-$version" --no-deps "numpy==$version"
done
cat > "$folder/kernel.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def fill(x, n):
    for i in range(0, n):
        tl.store(x + i, 1.0)


x = torch.zeros(5)
try:
    fill[(1,)](x, 5)
    print(f"filled {int(x.sum())} of 5")
except Exception as error:
    print(f"{type(error).__name__}: {error}")
PYTHON
run() { TRITON_INTERPRET=1 PYTHONPATH="$folder/numpy-$1:$folder/torch" "${PYTHON:-python3}" "$folder/kernel.py" | tail -n 1; }
before=$(run 2.3.5) after=$(run 2.4.0)
echo "triton 3.2.0, NumPy 2.3.5: $before"
echo "triton 3.2.0, NumPy 2.4.0: $after"
if [[ $before == "filled 5 of 5" && $after == *"InterpreterError"*"0-dimensional"* ]]; then
    echo "as seen: the loop runs under NumPy 2.3 and not under 2.4"
else
    echo "CHANGED"
    exit 1
fi
