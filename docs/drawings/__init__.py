"""Drawings of the documentation, each a function that returns a :class:`~docs.drawings.card.Card`.

    python -m docs.drawings            # draw all of them into docs/pictures/
    python -m docs.drawings losses     # some, by name

What a drawing shows of kernels (block sizes, splits, warps) comes from the tables of ``art_kernels`` and ``csrc``; a
test fails where a committed file does not show what they say now.
"""
