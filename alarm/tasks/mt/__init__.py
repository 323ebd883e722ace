"""Spanish-English translation."""
