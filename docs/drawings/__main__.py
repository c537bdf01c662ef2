"""Draw the figures of the documentation: see :mod:`docs.drawings`."""

from __future__ import annotations

import argparse
from pathlib import Path

from docs.drawings.drawn import DRAWINGS, PICTURES


def main() -> None:
    """Write the SVG files, and with ``--preview`` also PNG files."""
    parser = argparse.ArgumentParser(prog="python -m docs.drawings", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(DRAWINGS)} (default: all)")
    parser.add_argument(
        "--preview", type=Path, metavar="DIR", help="also write PNG files of 720 and of 360 pixels there"
    )
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in DRAWINGS:
            parser.error(f"{name!r} is not a drawing, expected one of {', '.join(DRAWINGS)}")
    for name in arguments.names or DRAWINGS:
        directory, draw = DRAWINGS[name]
        card = draw()
        path = PICTURES / directory / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(card.svg(), encoding="utf-8")
        print(f"drew {path.relative_to(PICTURES.parents[1])}")
        if arguments.preview is not None:
            arguments.preview.mkdir(parents=True, exist_ok=True)
            for width in (720, 360):
                (arguments.preview / f"{name}-{width}.png").write_bytes(card.png(width))


if __name__ == "__main__":
    main()
