"""`python -m alarm.score`: see alarm/evaluation/rescore.py."""

from .evaluation.rescore import main

if __name__ == "__main__":
    main()
