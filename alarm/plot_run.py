"""`python -m alarm.plot_run`: see alarm/training/plot.py."""

from .training.plot import main

if __name__ == "__main__":
    main()
