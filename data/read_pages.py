"""Read every page with every engine, as loaded and prepared, and write data/readings.

    python data/read_pages.py

Lessons 02 and 03 count the errors in these readings, because three engines need minutes for ten pages. Lesson 02 also
reads a page again and compares. Run this script when a page, an engine, `prepare` or a version in
requirements.lock has changed. It needs all three engines, Tesseract included.
"""
import csv
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from mlops_course.base.images import load_image
from mlops_course.reader.engines import ENGINES, load_engine
from mlops_course.reader.preparation import prepare

DATA = Path(__file__).resolve().parent
STEPS = {"readings.csv": lambda image: image, "prepared.csv": prepare} # file -> what is done to a page before reading


def version_of(engine: str) -> str:
    "The version of the package, or of the program, behind `engine`."
    if engine != "tesseract":
        return version(engine)
    import pytesseract
    return str(pytesseract.get_tesseract_version())


def main() -> None:
    paths = [DATA / "pages" / o for o in pd.read_csv(DATA / "pages" / "labels.csv")["file"]]
    engines = {name: load_engine(name) for name in ENGINES}
    for file, step in STEPS.items():
        with (DATA / "readings" / file).open("w", encoding="utf-8", newline="") as f:
            out = csv.writer(f, lineterminator="\n")
            out.writerow(("engine", "version", "file", "sha256", "text"))
            for name, engine in engines.items():
                for path in paths:
                    text = engine(step(load_image(path))).text
                    out.writerow((name, version_of(name), path.name, sha256(path.read_bytes()).hexdigest(), text))


if __name__ == "__main__":
    main()
