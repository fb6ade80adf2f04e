"Drift, probe and alerts of a scikit-learn model, in a process that knows nothing of the reader."
import subprocess
import sys

import pytest
from conftest import needs

from mlops_course.prometheus import PROMETHEUS_PROGRAMS

STORY = """
import sys
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

from prometheus_client import make_asgi_app
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from mlops_course.base.servers import on_free_port
from mlops_course.drift import drift_over_time, drift_lower_bounds
from mlops_course.drift_store import DriftMonitor, drift_registry
from mlops_course.monitoring import AlertReceiver
from mlops_course.probe import Probe, run_probe
from mlops_course.prometheus import run_monitoring

flowers = load_iris(as_frame=True)
X, y = flowers.data.sample(frac=1, random_state=0), flowers.target.sample(frac=1, random_state=0)
models = {'iris/1': LogisticRegression(max_iter=500).fit(X[:100], y[:100])}
def ask(rows): return [(name, answer) for name, model in models.items() for answer in model.predict(rows)]
def share(answers, truths): return {'exact': sum(a == b for a, b in zip(answers, truths))/len(truths)}
rules = {'groups': [{'name': 'iris', 'rules': [
    {'alert': 'Wrong', 'expr': 'iris_model_accuracy < 0.8', 'annotations': {'summary': '{{ $labels.model }}: {{ $value | humanizePercentage }}'}},
    {'alert': 'Moved', 'expr': 'iris_drift > 0.2', 'annotations': {'summary': '{{ $labels.feature }}'}}]}]}

calm, changed = X.sample(60, random_state=1), X.sample(60, random_state=2) + [0, 0, 0, 5]
assert max(drift_lower_bounds(X[:100], calm).values()) == 0 < drift_lower_bounds(X[:100], changed)['petal width (cm)']
assert drift_over_time(X[:100], calm, 40).max(axis=None) == 0
with ExitStack() as stack:
    open_ = stack.enter_context
    monitor = open_(DriftMonitor(Path(sys.argv[1])/'iris.db', list(X), window=60))
    monitor.refer(X[:100])
    probe = Probe(ask, list(zip(X[100:].to_numpy(), y[100:])), share, 'iris')
    hook = AlertReceiver()
    targets = {'probe': open_(run_probe(probe, .2)), 'drift': open_(on_free_port(make_asgi_app(drift_registry(monitor, 'iris')), lifespan='off'))}
    watch = open_(run_monitoring(targets, open_(on_free_port(hook, lifespan='off')), 1, .2, sys.argv[2] == 'embedded', rules))
    def track(rows):
        for row, answer in zip(rows.to_dict('records'), models['iris/1'].predict(rows.to_numpy())): monitor.track(row, model='iris/1', text=str(answer))
        monitor.flush()
    track(calm)
    until = monotonic() + 60
    while not (watch.now('iris_model_accuracy > 0.9') and watch.now('iris_drift')) and monotonic() < until: sleep(.1)
    sleep(1)
    assert hook.notes == [], hook.notes
    track(changed)
    assert hook.wait('Moved').summary == 'petal width (cm)'
    models = {'iris/2': LogisticRegression(max_iter=500).fit(X[:100], (y[:100] + 1) % 3)} # every label has slipped by one
    assert hook.wait('Wrong').summary.startswith('iris/2: ')
print(sorted(o for o in sys.modules if o.startswith(('mlops_course.reader', 'mlops_course.tools'))))
"""


@pytest.mark.parametrize('by', ['embedded', pytest.param('prometheus', marks=pytest.mark.slow)])
def test_a_model_of_ten_lines_is_watched_without_the_reader(tmp_path, by):
    if by == 'prometheus':
        for o in PROMETHEUS_PROGRAMS: needs(o, 'watches and tells')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', STORY, str(tmp_path), by], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == '[]'
