"""Tasks on slides and patients: bags of patch embeddings → labels and survival."""
