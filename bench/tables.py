"Timetables as data: each way of labelling boxes, on every group of layouts, clean and photographed."
import time
from collections.abc import Iterator

from mlops_course.base.files import find_root


# The recogniser reads 40 pages of each group that no training saw, as they are and as simulated photographs. Real scans
# hold no timetable; they are read where they are at hand, to see how many tables are invented.
def timetable_figures() -> Iterator[dict]:
    "Cells, rows, exact tables, hallucinated and missing fields with their intervals, and tables invented on pages without one."
    from mlops_course.base.images import load_image
    from mlops_course.reader.custom import load_custom
    from mlops_course.reader.timetable_pages import LAYOUTS, draw_timetable, photograph_timetable
    from mlops_course.reader.timetable_reading import open_label
    from mlops_course.reader.timetables import build_timetable, score_timetable, summarize, timetable_of
    engine,models = load_custom(),('rule', 'tokens', 'second')
    for group in LAYOUTS:
        for photo in (False, True):
            pages = [draw_timetable(group, 10_000 + i) for i in range(40)]
            if photo: pages = [photograph_timetable(o, i) for i,o in enumerate(pages)]
            start = time.perf_counter()
            lines = [engine(o.image).lines for o in pages]
            seconds = (time.perf_counter() - start)/len(pages)
            for name in models:
                label = open_label(name)
                scores = [score_timetable(build_timetable(some, label(some)), o.truth) for some,o in zip(lines, pages, strict=True)]
                yield dict(figure='timetables', layouts=group, photo=photo, model=name, seconds=seconds, **{k: str(o) for k,o in summarize(scores).items()})
    scans = sorted((find_root()/'data'/'pages').glob('scan_*.png')) # pages without a timetable
    lines = [engine(load_image(scan)).lines for scan in scans]
    for name in models:
        invented = 0
        for some in lines:
            try: invented += bool(timetable_of(some, open_label(name)))
            except ValueError: continue
        yield dict(figure='tables invented on pages without one', model=name, pages=len(scans), invented=invented)
