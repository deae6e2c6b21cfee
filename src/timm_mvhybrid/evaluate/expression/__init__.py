"""Expression prediction: HEST layout + embeddings → panels, folds, ridge probe, metrics."""
