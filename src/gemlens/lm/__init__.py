"""The language model: loading, hooks, running. Never sees a dictionary."""
