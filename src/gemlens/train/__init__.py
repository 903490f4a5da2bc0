"""Making dictionaries."""
