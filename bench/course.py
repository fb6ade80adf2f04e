"Set-up, the lessons and the site."
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory

from rich.console import Console

from mlops_course.base.files import find_root
from mlops_course.tools.house import lessons

from .timing import seconds_of


def setup_figures() -> Iterator[dict]:
    "Set-up from nothing, set-up again, and the command line."
    root = find_root()
    with TemporaryDirectory() as tmp:
        copy = Path(copytree(root, Path(tmp, 'course'), ignore=ignore_patterns('.git', '.venv', '_*_cache', '.*_cache', '_course', '_site', '*.egg-info')))
        env = os.environ | dict(UV_CACHE_DIR=str(Path(tmp, 'cache')), PIP_NO_CACHE_DIR='1')
        python = Path(sys.base_prefix)/('python.exe' if os.name == 'nt' else 'bin/python3')
        yield dict(figure='set-up from nothing', seconds=seconds_of(python, 'scripts/environment.py', cwd=copy, env=env))
        yield dict(figure='set-up again', seconds=seconds_of(python, 'scripts/environment.py', cwd=copy, env=env))
    course = Path(sys.executable).with_name('mlops-course')
    yield dict(figure='mlops-course --help', seconds=min(seconds_of(course, '--help') for _ in range(5)))


def lesson_figures() -> Iterator[dict]:
    "Each lesson through papermill and through nbval, and all of them two at a time."
    from mlops_course.tools.running import run_lessons
    from mlops_course.tools.verifying import verify_lessons
    quiet = Console(quiet=True)
    with TemporaryDirectory() as tmp:
        for lesson in lessons():
            result, = run_lessons([lesson], out=Path(tmp), console=quiet)
            yield dict(figure='lesson', lesson=lesson.name, status=result.status, seconds=result.seconds, peak_mb=result.peak_mb)
        start = time.perf_counter()
        run_lessons(lessons(), at_once=2, out=Path(tmp), console=quiet)
        yield dict(figure='course through papermill', lessons=len(lessons()), seconds=time.perf_counter()-start)
        start = time.perf_counter()
        list(verify_lessons(lessons(), at_once=2, console=quiet))
        yield dict(figure='course through nbval', lessons=len(lessons()), seconds=time.perf_counter()-start)


def site_figures() -> Iterator[dict]:
    "The site, built."
    from mlops_course.tools.site import build_site
    start = time.perf_counter()
    build_site()
    yield dict(figure='site build', seconds=time.perf_counter()-start)
