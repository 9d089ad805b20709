"""Super resolution: larger images out of small ones."""
