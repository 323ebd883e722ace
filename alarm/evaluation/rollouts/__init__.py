"""The answers of a run through training, as a page to browse."""
