"""Data only: dictionaries in Gemma Scope 2's layout, found by gemlens through importlib.resources."""
