"""Several answers to each prompt, scored once: which answer each combiner prefers, and how good it is."""
