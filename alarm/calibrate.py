"""`python -m alarm.calibrate`: see alarm/training/calibrate.py."""

from .training.calibrate import main

if __name__ == "__main__":
    main()
