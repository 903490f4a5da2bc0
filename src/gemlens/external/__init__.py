"""Optional neighbours, one adapter file each; imported by nobody but ``app`` and users."""
