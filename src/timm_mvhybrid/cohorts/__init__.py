"""What is known of patches: HEST layout, counts, gene panels, labelled images, slide tables → patches, targets, groups."""
