"""Circuits: attribution graphs from transcoders and CLTs."""
