"""DINOv2-style pretraining: patches → crops → student and teacher → losses → checkpoint."""
