"""Records in, bytes out: no torch, no network."""
