"""Long-form question answering."""
