"""Drawings of the documentation, each a function that returns a :class:`~docs.drawings.card.Card`.

    python -m docs.drawings            # draw all of them into docs/pictures/
    python -m docs.drawings losses     # some, by name

Sizes of kernels (block sizes, splits, warps) are read from the tables of ``art_kernels`` and ``csrc``; a test fails if
a committed file is out of date.
"""
