"""`python -m alarm.best_of_n`: see alarm/evaluation/best_of_n/best_of_n.py."""

from .evaluation.best_of_n.best_of_n import main

if __name__ == "__main__":
    main()
