"""`python -m alarm.export_holistic`: see alarm/models/export.py."""

from .models.export import main

if __name__ == "__main__":
    main()
