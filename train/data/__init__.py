"""Reading of data that several tasks share."""
