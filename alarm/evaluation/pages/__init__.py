"""Self-contained pages: one HTML file with its data, a table with search and filters, and no request at view time."""
