"""Grammar errors of a text."""
