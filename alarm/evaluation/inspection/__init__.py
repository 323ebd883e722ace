"""A look at the rewards of single answers."""
