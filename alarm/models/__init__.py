"""Models that score text: loading, the holistic model, the Longformers."""
