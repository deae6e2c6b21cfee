"""From patches to features: backbone, transform, pooling, h5 store and cache."""
