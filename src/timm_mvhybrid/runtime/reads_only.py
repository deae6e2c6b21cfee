"""Processes that read patches and nothing else."""

READS_ONLY = "_TIMM_MVHYBRID_READS_ONLY"
"""Environment variable of the processes that this package starts to read patches.

In them importing the package leaves its models out, and so torch and timm: half a gigabyte, and seconds of a processor, for
each of them. It is not for users.
"""
