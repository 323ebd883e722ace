"""An LLM as the judge of two answers."""
