"""Export the notebooks to the library: nbdev_export, whose `__all__` begins at column 10 and is wrapped as if at column 0.

    .venv/bin/python scripts/export.py
"""
from textwrap import TextWrapper

import nbdev.maker
from nbdev.doclinks import nbdev_export


def narrower(width: int, **options: object) -> TextWrapper:
    "A wrapper that leaves room for `__all__ = `."
    return TextWrapper(width=width - len("__all__ = "), **options)
nbdev.maker.TextWrapper = narrower

if __name__ == "__main__": nbdev_export()
