"""The folder of a run: its products, checkpoints, records and plots."""
