"""`python -m alarm.train_holistic`: see alarm/learning/holistic.py."""

from .learning.holistic import main

if __name__ == "__main__":
    main()
