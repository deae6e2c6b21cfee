"""What every room stands on: nothing of it knows of models or data."""
