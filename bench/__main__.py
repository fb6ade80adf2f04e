"""How long does it take, how much memory, how many errors? One JSON line for each figure.

    python -m bench [--only GROUP]     in the folder of the project; `mlops-course bench` is the same

Speed is measured, and never tested: a test that fails because the machine was busy teaches people to ignore tests.
"""
import argparse
import json
from collections.abc import Callable, Iterator
from difflib import get_close_matches

from . import course, models, monitors, records, services, tables

GROUPS: dict[str, Callable[[], Iterator[dict]]] = dict(
    setup=course.setup_figures, lessons=course.lesson_figures, site=course.site_figures, engines=models.engine_figures,
    data=models.data_figures, models=models.model_figures, tracking=records.tracking_figures, tuning=records.tuning_figures,
    compression=models.compression_figures, registry=records.registry_figures, testing=models.testing_figures,
    serving=services.serving_figures, vision=services.vision_figures, containers=services.container_figures,
    pipelines=records.pipeline_figures, release=services.release_figures, monitoring=monitors.monitoring_figures,
    drift=monitors.drift_figures, performance=monitors.performance_figures, reviews=models.review_figures,
    scans=models.scan_figures, timetables=tables.timetable_figures)


def figures(
    only: str | None = None, # One group; all if none
) -> Iterator[str]:          # JSON lines
    "Measure, one line a figure, as each is ready."
    if only is not None and only not in GROUPS:
        near = get_close_matches(only, GROUPS, n=1)
        raise ValueError(f"No group {only!r}: {f'did you mean {near[0]!r}?' if near else f'the groups are {list(GROUPS)}'}")
    for name,measure in GROUPS.items():
        if only in (None, name): yield from (json.dumps({k:round(v, 4) if isinstance(v, float) else v for k,v in line.items()}) for line in measure())


def main() -> None:
    asked = argparse.ArgumentParser(prog='mlops-course bench')
    asked.add_argument('--only')
    try:
        for line in figures(asked.parse_args().only): print(line, flush=True)
    except ValueError as e: asked.error(str(e))


if __name__ == '__main__': main()
