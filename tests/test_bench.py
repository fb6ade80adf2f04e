"The bench: what it measures with, its groups, and the command that calls it."
import sys

import pytest
from click.testing import CliRunner

from mlops_course.base import files


@pytest.fixture
def bench(root, monkeypatch):
    "bench/ as a package."
    monkeypatch.syspath_prepend(root)
    import bench.__main__
    return bench


def test_seconds_are_those_of_the_command(bench):
    assert bench.timing.seconds_of(sys.executable, '-c', 'import time; time.sleep(.2)') > .2
    with pytest.raises(ValueError, match='ZeroDivisionError'): bench.timing.seconds_of(sys.executable, '-c', '1/0')


def test_an_unknown_group_is_named(bench):
    with pytest.raises(ValueError, match="did you mean 'engines'"): next(bench.__main__.figures('engine'))


def test_every_group_has_its_imports(bench):
    "What a group imports inside its function exists: nobody runs all groups."
    import ast
    from importlib import import_module
    from inspect import getsource
    from textwrap import dedent
    for measure in bench.__main__.GROUPS.values():
        for node in ast.walk(ast.parse(dedent(getsource(measure)))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith('mlops_course'):
                module = import_module(node.module)
                for o in node.names: assert hasattr(module, o.name) or import_module(f'{node.module}.{o.name}'), (measure.__name__, o.name)


def test_command_says_where_the_bench_is(tmp_path, monkeypatch):
    from mlops_course.tools.cli import main
    (tmp_path/'settings.ini').write_text('lib_name = mlops-course')
    monkeypatch.chdir(tmp_path)
    assert files.find_root() == tmp_path
    done = CliRunner().invoke(main, ['bench'])
    assert done.exit_code != 0
    assert 'No bench/ in' in done.output
