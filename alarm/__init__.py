"""ALaRM: align language models with a holistic reward and aspect rewards, combined hierarchically.

Importing this package loads nothing heavy; torch and the models come in with the module that needs them.
"""

__version__ = "0.1.0"
