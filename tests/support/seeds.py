"""Other random numbers for the tests: every seed that a test states is moved by the offset in an environment variable.

A test that draws its input must hold for other draws too. Seeds are moved where a file of tests/ sets them; those
that the product sets stay. A test whose numbers belong to its seed says so: ``@pytest.mark.fixed_seed``.
"""

import os
import random
import sys
from pathlib import Path

import numpy as np
import torch

VARIABLE = "TEST_SEED_OFFSET"
_TESTS = str(Path(__file__).resolve().parents[1]) + os.sep
_offset = 0


def set_offset(offset):
    """Moves the seeds that tests state from now on; returns the offset before."""
    global _offset
    before, _offset = _offset, offset
    return before


def offset():
    """By how much the seeds that tests state are moved now."""
    return _offset


def stated_offset():
    """The offset that the environment states, 0 without one."""
    return int(os.environ.get(VARIABLE, "0"))


def _moved(seed):
    """Two frames up is who states the seed."""
    in_tests = sys._getframe(2).f_code.co_filename.startswith(_TESTS)
    return seed + _offset if in_tests and isinstance(seed, int) else seed


class _Generator(torch.Generator):
    def manual_seed(self, seed):
        return super().manual_seed(_moved(seed))


def _moving(function):
    def seeded(seed=None, *arguments, **options):
        return function(_moved(seed), *arguments, **options)

    return seeded


def install():
    """Puts the functions that take seeds behind ones that move them; nothing where the offset is 0."""
    if set_offset(stated_offset()) or not _offset:
        return
    torch.Generator = _Generator
    torch.manual_seed = _moving(torch.manual_seed)
    np.random.default_rng = _moving(np.random.default_rng)
    np.random.seed = _moving(np.random.seed)
    random.seed = _moving(random.seed)


install()
