"""Probes on frozen embeddings: train and test features + targets → predictions."""
