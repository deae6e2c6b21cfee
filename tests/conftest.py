"""Runs Triton's kernels in its interpreter where there is no GPU."""

import os

import torch

# Triton reads it on import, which no test module may do before
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
