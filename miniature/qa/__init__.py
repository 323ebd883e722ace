"""Long-form QA over an invented encyclopedia."""
