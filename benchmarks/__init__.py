"""Claims of speed → figures measured beside their peers: ``python -m benchmarks NAME``."""
