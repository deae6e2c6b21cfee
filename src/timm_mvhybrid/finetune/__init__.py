"""Fine-tuning: an encoder and measured expression → the encoder, taught molecular state without losing morphology."""
