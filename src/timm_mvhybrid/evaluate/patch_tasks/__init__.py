"""Tasks on labelled patches: images with classes → retrieval and classification scores."""
