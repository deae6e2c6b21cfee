"""Fused kernels for CPUs: compiled by numba on first use, run in as many threads as torch takes."""
