"""`make quickstart`: the whole pipeline at a size that fits a laptop. `python -m quickstart.run`"""
