"""What any training loop needs: processes, sharding, optimiser, schedules, checkpoints, run folder, metrics, curves."""
