"""Let every engine read every page again, and write data/readings/readings.csv.

    python data/read_pages.py

Lesson 03 scores these readings, so that it need not read ten pages with three engines each time, and reads some of them afresh to see whether they
still hold. Run this when a page, an engine or a version in requirements.lock has changed. It needs all three engines, Tesseract included.
"""
import csv
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from mlops_course.base.images import load_image
from mlops_course.reader.engines import ENGINES, load_engine

DATA = Path(__file__).resolve().parent


def version_of(engine: str) -> str:
    "The version of the package, or of the program, behind `engine`."
    if engine != "tesseract":
        return version(engine)
    import pytesseract
    return str(pytesseract.get_tesseract_version())


def main() -> None:
    files = list(pd.read_csv(DATA / "pages" / "labels.csv")["file"])
    rows = []
    for name in ENGINES:
        engine = load_engine(name)
        for file in files:
            path = DATA / "pages" / file
            rows.append((name, version_of(name), file, sha256(path.read_bytes()).hexdigest(), engine(load_image(path)).text))
    with (DATA / "readings" / "readings.csv").open("w", encoding="utf-8", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(("engine", "version", "file", "sha256", "text"))
        out.writerows(rows)


if __name__ == "__main__":
    main()
