"""Runs the numeric tests as on other CPUs: each set of kernels, one and two threads, three draws of the numbers.

Which instructions a CPU has, and how many threads share a sum, decide the order of additions, and so the last digits.
The tests marked ``numeric`` (tests/support/numeric.py says which) must not depend on them. ``make test-cpus`` runs all
combinations, ``make test-cpus CPUS=short`` one of them on the quick files.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

TESTS = Path(__file__).parent
# From the oldest to the newest. torch's own kernels, then the libraries that multiply matrices: MKL and oneDNN for
# torch, OpenBLAS for NumPy and SciPy, and what numba compiles for. The last leaves these as they are: they take what the
# CPU has, AMX included.
KERNELS = {
    "default": {
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NUMBA_CPU_NAME": "generic",
    },
    "avx2": {
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NUMBA_CPU_NAME": "haswell",
        # nothing beyond what the name says
        "NUMBA_CPU_FEATURES": "",
    },
    "avx512": {},
}
THREADS = (1, 2)
SEED_OFFSETS = (0, 1000, 2000)
SHORT = ("default", 2, 1000)
"""What differs in everything from the suite as it runs on two cores."""
SHORT_PATHS = (
    "tests/test_bounds.py",
    *(
        f"tests/ops/test_{name}.py"
        for name in ("selective_scan", "ssd", "gated_norm", "einfft", "step_sizes")
    ),
    "tests/layers/test_layers.py",
    "tests/models/test_goldens.py",
    *(f"tests/probes/test_{name}.py" for name in ("expression_metrics", "resampling", "ridge")),
    *(f"tests/ssl/test_{name}.py" for name in ("heads", "losses", "augmentation", "monitor")),
)


@dataclass
class Outcome:
    """What pytest counted in one combination; ``failures`` are names."""

    num_tests: int
    num_skipped: int
    failures: list
    seconds: float


def available():
    """The sets of kernels that this CPU can run: up to the one that torch takes by itself."""
    names = list(KERNELS)
    native = torch.backends.cpu.get_cpu_capability().lower()
    return names[: names.index(native) + 1] if native in names else names[:1]


def run(kernels, threads, seed_offset, arguments):
    """Runs pytest once; its output is shown where it fails."""
    environment = {
        **os.environ,
        **KERNELS[kernels],
        "ATEN_CPU_CAPABILITY": kernels,
        "TEST_SEED_OFFSET": str(seed_offset),
        **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")},
        "OMP_WAIT_POLICY": "passive",  # threads that wait give way to those of other workers
    }
    # more threads than cores: what waits gives way, and most tests have little to share
    workers = min(os.cpu_count() or 1, 8)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "numeric", "-n", str(workers)]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        result = subprocess.run(
            command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False
        )
        if not report.exists():
            sys.exit(f"pytest ended without a report:\n{result.stdout}\n{result.stderr}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    if failures or result.returncode:
        print(result.stdout)
        failures = failures or [f"pytest ended with {result.returncode}"]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Outcome(len(cases), skipped, failures, time.monotonic() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one combination, on the quick files")
    parser.add_argument("pytest", nargs="*", help="for pytest, as paths; -- before options")
    arguments = parser.parse_args()
    combinations = [(k, t, s) for k in KERNELS for t in THREADS for s in SEED_OFFSETS]
    selection = arguments.pytest
    if arguments.short:
        combinations = [SHORT]
        selection = selection or list(SHORT_PATHS)
    row = "{:<10}{:>8}{:>8}{:>8}{:>9}{:>8}{:>9}"
    print(row.format("kernels", "threads", "seeds +", "tests", "skipped", "failed", "seconds"))
    failures = {}
    for kernels, threads, seed_offset in combinations:
        if kernels not in available():
            print(
                f"{kernels:<10}{threads:>8}{seed_offset:>8}  left out: this CPU has {available()[-1]} at most"
            )
            continue
        outcome = run(kernels, threads, seed_offset, selection)
        counts = outcome.num_tests, outcome.num_skipped, len(outcome.failures), f"{outcome.seconds:.0f}"
        print(row.format(kernels, threads, seed_offset, *counts), flush=True)
        for name in outcome.failures:
            failures.setdefault(name, []).append(f"{kernels} {threads} {seed_offset}")
    for name, where in failures.items():
        print(f"failed: {name} ({'; '.join(where)})")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
