"The MLOps modules know nothing of OCR: a scikit-learn model goes the same way as the recogniser, and nothing of `reader` is imported."
import json
import subprocess
import sys

import pytest

STORY = '''
import json, sys
from functools import partial
from pathlib import Path
from time import perf_counter
import mlflow.sklearn, numpy as np, pandas as pd
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from mlops_course import scoring
from mlops_course.base.settings import Gates
from mlops_course.gates import check_gates
from mlops_course.model_versions import download_version, find_version, register
from mlops_course.registry import promote, roll_back
from mlops_course.registry_history import model_history
from mlops_course.spool import spooled_run
from mlops_course.store import find_runs, open_store
from mlops_course.tuning import trial_run
from mlops_course.tuning_workers import SearchTerms, open_search, search_together

work = Path(sys.argv[1])
images, digits = load_digits(return_X_y=True)
valid, unseen = slice(400, 1000), slice(1000, None)

def fit(C=1., pixels=64, **_):
    return LogisticRegression(C=C, max_iter=200).fit(images[:400, :pixels], digits[:400])

def wrong(model, part):
    return model.predict(images[part, :model.n_features_in_]) != digits[part]

scoring.METRICS['error'] = ('wrong', 'items')
def evaluate(folder): # one row an image, read alone
    model, rows = mlflow.sklearn.load_model(folder), []
    for i in range(unseen.start, len(digits)):
        start = perf_counter()
        read = model.predict(images[i:i + 1, :model.n_features_in_])[0]
        rows.append({'item': str(i), 'wrong': read != digits[i], 'dataset': 'digits', 'seconds': perf_counter() - start})
    return pd.DataFrame(rows)

def package(model, folder):
    mlflow.sklearn.save_model(model, folder, pip_requirements=['scikit-learn'])
    return {'size_mb': sum(o.stat().st_size for o in folder.rglob('*') if o.is_file())/1e6, 'error': wrong(model, valid).mean()}

store = open_store(work/'mlflow.db', 'digits')
check = partial(check_gates, gates=Gates(slices=('digits',), lines=500, p95_ms=1e4), metric='error')
decisions, run_ids = [], {}
for pixels in (24, 64, 23): # of each image
    with spooled_run(store, f'{pixels} pixels', seed=0) as run:
        model = fit(pixels=pixels)
        run.params({'pixels': pixels})
        run.metrics({'error': wrong(model, valid).mean()})
    run_ids[pixels] = run.id
    register(store, run.id, partial(package, model), 'ana', 'a test', 'digits')
    decisions.append(promote(store, evaluate, 'ana', 'a test', name='digits', check=check))
back = roll_back(store, 'cleo', 'a test', 'digits')

mlflow.set_tracking_uri(store.uri)
mlflow.set_experiment(store.experiment)
def objective(trial):
    with trial_run(trial):
        error = float(wrong(fit(trial.suggest_float('C', 1e-4, 10., log=True)), valid).mean())
        mlflow.log_metric('error', error)
        return error
open_search(work/'search.db', SearchTerms(sampler='random', pruner='none'))
with mlflow.start_run(run_name='search'): study = search_together(work/'search.db', objective, trials=3)

print(json.dumps({
    'best': min((o for o in find_runs(store, "params.pixels != ''")), key=lambda o: o['metrics']['error'])['id'] == run_ids[64],
    'passed': [o.passed for o in decisions], 'refused': decisions[-1].refusals, 'back': back,
    'champion': find_version(store, 'champion', 'digits')['version'],
    'loaded': int(wrong(mlflow.sklearn.load_model(download_version(store, find_version(store, 2, 'digits'), work)),
                        valid).sum()) == int(wrong(fit(), valid).sum()),
    'history': [o['what'] for o in model_history(store, 'digits')],
    'trials': len(study.trials), 'winner': study.best_value,
    'modules': sorted(sys.modules)}))
'''


@pytest.fixture(scope='module')
def told(tmp_path_factory):
    "What the story says of itself."
    folder = tmp_path_factory.mktemp('any_model')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', STORY, str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_scikit_learn_model_is_tracked_and_the_best_run_found(told):
    assert told['best']


def test_it_is_registered_gated_and_loaded(told):
    assert told['passed'] == [True, True, False]
    assert any(o.startswith('whole: ERROR') for o in told['refused'])
    assert told['loaded']


def test_it_is_rolled_back_and_the_history_says_so(told):
    assert told['back'] == told['champion'] == 1
    assert told['history'] == ['registered', 'promoted', 'registered', 'promoted', 'registered', 'refused', 'rolled back']


def test_its_settings_are_searched(told):
    assert told['trials'] == 3
    assert 0 < told['winner'] < .5


def test_nothing_of_the_reader_is_imported(told):
    assert 'mlops_course.registry' in told['modules']
    assert [o for o in told['modules'] if o.startswith('mlops_course.reader')] == []
