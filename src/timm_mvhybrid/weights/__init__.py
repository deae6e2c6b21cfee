"""From a file of weights to a state dict that fits: reading, key conversion, digest, fingerprint, download."""
