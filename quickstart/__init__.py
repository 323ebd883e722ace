"""The quickstart: `python -m quickstart.run`, or `make quickstart`."""
