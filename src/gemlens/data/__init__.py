"""Text at rest."""
