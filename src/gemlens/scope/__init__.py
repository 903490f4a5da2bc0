"""Dictionaries: loading and arithmetic. Never sees a language model."""
