"""``python -m art``: the command line."""

from art.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
