"""Entry point of ``python -m art``."""

from art.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
