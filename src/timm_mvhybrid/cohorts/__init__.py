"""What is known of patches: HEST layout, counts, gene panels, labels, slide tables → patches, targets, groups."""
