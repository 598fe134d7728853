"""``python -m percore`` is the command ``percore``."""

from percore.cli import main

if __name__ == "__main__":
    main()
