"""What the stages of a run do."""
