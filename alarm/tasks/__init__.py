"""A task is its data and its aspect rewards, one module each."""
