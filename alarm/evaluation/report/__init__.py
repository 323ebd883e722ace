"""Tables, pages and figures of a comparison."""
