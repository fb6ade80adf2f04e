"Searches (lesson 09): on record, limited, resumed, shared by processes, killed, damaged; and what Optuna does by itself."
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from functools import partial
from math import isnan, nan

import mlflow
import optuna
import psutil
import pytest
from click.testing import CliRunner

from mlops_course.base.files import find_root
from mlops_course.reader import search as reader
from mlops_course.reader.search import RECIPE, search_recipe, suggest_recipe, train_trial
from mlops_course.reader.training import Recipe
from mlops_course.store import open_store
from mlops_course.tools.cli import main
from mlops_course.tuning import report_or_prune, spent_steps, stop_after, trial_run
from mlops_course.tuning_workers import SearchTerms, make_pruner, make_sampler, open_search, search_together

pytestmark = pytest.mark.filterwarnings('ignore::optuna.exceptions.ExperimentalWarning')
QUICK = Recipe(steps=8, batch=2, width=16, depth=1, longest=5)
PLAIN = SearchTerms(sampler='random', pruner='none', seed=3)


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path/'mlflow.db', 'tuning')
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_experiment('tuning')
    return store


@pytest.fixture
def path(tmp_path): return tmp_path/'search.db'


def parabola(trial):
    trial.set_user_attr('process', os.getpid())
    x = trial.suggest_float('x', -10, 10)
    time.sleep(.1)
    return x*x


def broken_in_a_worker(trial):
    from multiprocessing import parent_process
    if parent_process(): raise OSError('the disk of the worker is gone')
    wait_for(lambda: 'FAIL' in states(trial.study)) # the worker starts in seconds, in a minute on a busy machine
    return parabola(trial)


def with_two_processes(trial):
    value = parabola(trial)
    wait_for(lambda: len({trial.user_attrs.get('process') for trial in trial.study.trials} - {None}) == 2)
    return value


def states(study): return [trial.state.name for trial in study.trials]
def params(study): return [trial.params for trial in study.trials]


def children(parent):
    rows = mlflow.search_runs(filter_string=f"tags.`mlflow.parentRunId` = '{parent}'")
    return {row['tags.mlflow.runName']: row for row in rows.to_dict('records')}


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, 'nothing happened'
        time.sleep(.02)


# What Optuna does by itself, as the lesson says

def test_an_objective_that_returns_nan_fails_its_trial():
    study = optuna.create_study()
    study.optimize(lambda trial: nan, n_trials=1)
    assert states(study) == ['FAIL']


def storage(path): return optuna.storages.RDBStorage(
    f'sqlite:///{path}', heartbeat_interval=1, grace_period=2,
    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1))


def test_a_stale_trial_is_repeated_once_and_its_late_process_is_refused(path):
    study = optuna.create_study(storage=storage(path))
    late = study.ask()
    late.suggest_float('x', 0, 1)
    study._storage.record_heartbeat(late._trial_id) # then its process sleeps
    time.sleep(3.2)
    study.optimize(lambda trial: trial.suggest_float('x', 0, 1), n_trials=1)
    assert states(study) == ['FAIL', 'COMPLETE']
    assert params(study)[0] == params(study)[1]
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError): late.report(.5, 1)
    with pytest.raises(ValueError, match='Cannot tell a FAIL trial'): study.tell(late, .5)


def test_a_trial_that_was_asked_for_has_no_heartbeat(path):
    study = optuna.create_study(storage=storage(path))
    study.ask()
    time.sleep(2.2)
    study.optimize(lambda trial: 1., n_trials=1)
    assert states(study) == ['RUNNING', 'COMPLETE']


def test_a_seeded_sampler_begins_again_in_each_process():
    def draw(): return optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask().suggest_float('x', 0, 1)
    assert draw() == draw()


# One trial

def test_a_report_is_stored_and_a_diverged_trial_is_pruned():
    study = optuna.create_study()
    trial = study.ask()
    report_or_prune(trial, .5, 1)
    with pytest.raises(optuna.TrialPruned, match='diverged by step 2'): report_or_prune(trial, float('inf'), 2)
    assert study.trials[0].intermediate_values == {1: .5, 2: float('inf')}


def test_the_pruner_decides():
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=.6))
    report_or_prune(study.ask(), .59, 1)
    with pytest.raises(optuna.TrialPruned, match=r'the pruner stopped it at step 4, with 0\.610'): report_or_prune(study.ask(), .61, 4)


def end_with(error):
    def objective(trial):
        with trial_run(trial):
            trial.suggest_float('x', 0, 1)
            mlflow.log_metric('error', .5)
            if error: raise error
            return .5
    return objective


@pytest.mark.parametrize(('error', 'status', 'state'), [
    (None, 'FINISHED', 'COMPLETE'), (optuna.TrialPruned('too slow'), 'KILLED', 'PRUNED'),
    (ValueError('no file'), 'FAILED', 'FAIL'), (KeyboardInterrupt(), 'FAILED', 'FAIL')])
def test_a_run_ends_as_its_trial_and_has_its_parameters(store, error, status, state):
    study = optuna.create_study()
    with mlflow.start_run() as parent:
        with suppress(KeyboardInterrupt): study.optimize(end_with(error), n_trials=1, catch=ValueError)
        assert mlflow.active_run().info.run_id == parent.info.run_id # the trial's run has ended
    [run] = children(parent.info.run_id).values()
    assert (run['status'], states(study)) == (status, [state])
    assert float(run['params.x']) == params(study)[0]['x']
    assert run.get('tags.pruned') == ('too slow' if status == 'KILLED' else None)


def test_a_run_ends_even_if_its_parameters_cannot_be_kept(store):
    def objective(trial):
        with trial_run(trial):
            trial.suggest_float('x', 0, 1)
            mlflow.log_param('x', 2) # what is logged cannot be changed
            return .5
    with mlflow.start_run() as parent:
        with pytest.raises(mlflow.MlflowException): optuna.create_study().optimize(objective, n_trials=1)
        assert mlflow.active_run().info.run_id == parent.info.run_id
    assert [o['status'] for o in children(parent.info.run_id).values()] == ['FAILED']


def test_a_run_finds_a_parent_in_another_process(store):
    with mlflow.start_run() as parent: pass
    with trial_run(optuna.trial.FixedTrial({}, 7), parent.info.run_id): pass
    assert [*children(parent.info.run_id)] == ['trial 7']


# What it costs

def test_pruned_steps_count_and_a_trial_without_a_report_costs_nothing():
    study = optuna.create_study()
    for reports in ({50: .9}, {50: .8, 100: .5}, {}):
        study.add_trial(optuna.create_trial(value=.5, intermediate_values=reports))
    assert spent_steps(study) == 150


@pytest.mark.parametrize(('limit', 'expected'), [(20, 7), (22, 8), (14, 4), (8, 1)])
def test_a_search_stops_before_its_steps_are_exceeded(limit, expected):
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0)) # all after 2 of 8 steps
    study.optimize(lambda trial: report_or_prune(trial, 1., 2), callbacks=[stop_after(limit, 8)])
    assert len(study.trials) == expected
    assert spent_steps(study) <= limit


# The search for a recipe

def test_a_wrong_name_is_refused_with_the_right_one():
    with pytest.raises(ValueError, match="did you mean 'rate'"): suggest_recipe(optuna.trial.FixedTrial({}), names=['rates'])
    with pytest.raises(ValueError, match='choose from rate, warm_up'): suggest_recipe(optuna.trial.FixedTrial({}), names=['seed'])


def test_only_named_settings_are_changed():
    recipe = suggest_recipe(optuna.trial.FixedTrial({'rate': .02}), QUICK, ['rate'])
    assert recipe == QUICK.model_copy(update={'rate': .02})


def test_a_diverged_training_is_pruned_and_cannot_win():
    trial = optuna.trial.FixedTrial({'width': 16})
    with pytest.raises(optuna.TrialPruned, match='diverged'): train_trial(trial, QUICK.model_copy(update={'rate': 1e9}), ['width'])


@pytest.mark.slow
def test_each_trial_is_a_child_run_and_the_search_goes_on(path, store, monkeypatch):
    terms = SearchTerms(sampler='random', pruner='none')
    def broken(*words): raise OSError('the disk is gone')
    monkeypatch.setattr(reader, 'train', broken)
    with pytest.raises(OSError, match='the disk is gone'): search_recipe(path, store, terms, QUICK, ['rate'], trials=2)
    monkeypatch.undo()
    study = open_search(path)
    run = study.user_attrs['run']
    assert states(study) == ['FAIL']
    assert mlflow.get_run(run).info.status == 'FAILED'
    study = search_recipe(path, store, trials=2)
    assert states(study) == ['FAIL', 'COMPLETE', 'COMPLETE']
    assert study.user_attrs['run'] == run
    parent = mlflow.get_run(run)
    assert (parent.info.status, parent.data.metrics['best_cer'], parent.data.metrics['steps']) == ('FINISHED', study.best_value, 16)
    runs = children(run)
    assert {name: row['status'] for name,row in runs.items()} == {'trial 0': 'FAILED', 'trial 1': 'FINISHED', 'trial 2': 'FINISHED'}
    assert runs['trial 1']['metrics.cer'] == study.trials[1].value
    assert Recipe(**{k: runs['trial 1'][f'params.{k}'] for k in Recipe.model_fields}) == QUICK.model_copy(update=study.trials[1].params)


def test_a_search_without_a_complete_trial_has_no_best_value(path, store):
    study = search_recipe(path, store, SearchTerms(), QUICK, ['rate'], steps=7)
    assert study.trials == []
    assert isnan(mlflow.get_run(study.user_attrs['run']).data.metrics['best_cer'])


# The storage

def test_a_search_without_terms_must_be_there(path):
    with pytest.raises(FileNotFoundError, match='cannot be resumed'): open_search(path)
    assert not path.exists()


def test_other_terms_are_refused_by_name(path):
    open_search(path, PLAIN)
    assert open_search(path, PLAIN).user_attrs == open_search(path).user_attrs
    with pytest.raises(ValueError, match='other terms: seed 4 instead of 3'): open_search(path, PLAIN.model_copy(update={'seed': 4}))


@pytest.mark.parametrize('content', [b'SQLite format 3\0' + b'\xff'*5000, b'no database at all, but long enough to have a header'*20])
def test_a_damaged_storage_is_said_to_be_damaged(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match='damaged, or another file'): open_search(path, PLAIN)
    assert path.read_bytes() == content


def test_a_torn_storage_is_said_to_be_damaged(path):
    open_search(path, PLAIN).optimize(parabola, n_trials=2)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match='damaged, or another file'): open_search(path)


def test_the_database_of_another_program_is_left_as_it_is(path):
    with sqlite3.connect(path) as db: db.execute('CREATE TABLE things (id)')
    db.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match='a database with other tables'): open_search(path, PLAIN)
    assert path.read_bytes() == before


@pytest.mark.parametrize('terms', [{'sampler': 'best'}, {'pruner': 'harsh'}, {'seeds': 3}])
def test_a_wrong_term_is_refused(terms):
    with pytest.raises(ValueError, match=next(iter(terms))): SearchTerms(**terms)


@pytest.mark.parametrize(('name', 'kind'), [('median', 'MedianPruner'), ('halving', 'SuccessiveHalvingPruner'), ('none', 'NopPruner')])
def test_each_pruner_is_optunas(name, kind): assert type(make_pruner(SearchTerms(pruner=name, full_steps=8))).__name__ == kind


@pytest.mark.parametrize('name', ['tpe', 'random'])
def test_each_process_and_each_sitting_draws_its_own_numbers(name):
    def draw(seed, trials, worker):
        sampler = make_sampler(SearchTerms(sampler=name, seed=seed), trials, worker)
        return optuna.create_study(sampler=sampler).ask().suggest_float('x', 0, 1)
    drawn = [draw(seed, trials, worker) for seed in (0, 1) for trials in (0, 3) for worker in (0, 1)]
    assert len(set(drawn)) == 8
    assert draw(0, 3, 1) == drawn[3]


# Limits

def test_a_search_without_an_end_is_refused(path):
    open_search(path, PLAIN)
    with pytest.raises(ValueError, match='pass steps, trials or seconds'): search_together(path, parabola)


def test_a_second_sitting_makes_only_what_is_left_and_repeats_nothing(path):
    open_search(path, PLAIN)
    assert len(search_together(path, parabola, trials=2).trials) == 2
    study = search_together(path, parabola, trials=4)
    assert len({trial.params['x'] for trial in study.trials}) == len(study.trials) == 4
    assert len(search_together(path, parabola, trials=4).trials) == 4


def test_a_budget_smaller_than_a_trial_buys_nothing(path):
    open_search(path, PLAIN.model_copy(update={'full_steps': 8}))
    assert search_together(path, parabola, steps=7).trials == []


def test_the_steps_of_all_sittings_count(path):
    open_search(path, PLAIN.model_copy(update={'full_steps': 8}))
    def objective(trial): return trial.report(1, 8) or 1.
    assert len(search_together(path, objective, steps=20).trials) == 2
    assert len(search_together(path, objective, steps=33).trials) == 4


def test_no_trial_begins_after_the_time_is_up(path):
    open_search(path, PLAIN)
    assert search_together(path, parabola, seconds=0).trials == []


def test_ctrl_c_leaves_no_trial_running(path):
    def stopped(trial): raise KeyboardInterrupt
    study = open_search(path, PLAIN)
    with pytest.raises(KeyboardInterrupt): search_together(path, stopped, trials=1)
    assert states(study) == ['FAIL']


# Several processes

@pytest.mark.slow
def test_two_processes_share_a_search_without_duplicates(path):
    open_search(path, PLAIN)
    study = search_together(path, with_two_processes, jobs=2, trials=6)
    assert set(states(study)) == {'COMPLETE'}
    assert len({trial.user_attrs['process'] for trial in study.trials}) == 2
    assert len({trial.params['x'] for trial in study.trials}) == len(study.trials)


@pytest.mark.slow
def test_what_a_failed_worker_left_is_done_by_the_caller(path):
    open_search(path, PLAIN)
    with pytest.warns(UserWarning, match='1 of 1 workers failed'): study = search_together(path, broken_in_a_worker, 2, trials=3)
    assert states(study).count('COMPLETE') >= 3


CALLER = '''
from functools import partial
from pathlib import Path
from mlops_course.reader.search import RECIPE, train_trial
from mlops_course.tuning_workers import search_together
if __name__ == '__main__':
    recipe = RECIPE.model_copy(update={'steps': 64, 'width': 16})
    search_together(Path('search.db'), partial(train_trial, recipe=recipe, names=['rate']), jobs=2, trials=100000)
'''


@pytest.mark.slow
def test_a_killed_caller_loses_two_trials_at_most_and_they_are_repeated(path):
    study = open_search(path, PLAIN)
    (path.parent/'caller.py').write_text(CALLER)
    caller = subprocess.Popen([sys.executable, 'caller.py'], cwd=path.parent)
    def beating():
        "How many running trials have a heartbeat. One that is killed before its first stays RUNNING for good."
        with closing(sqlite3.connect(path)) as db:
            return db.execute("SELECT count(*) FROM trial_heartbeats JOIN trials USING (trial_id) WHERE state = 'RUNNING'").fetchone()[0]
    def have_parameters(): return all(trial.params for trial in study.trials if trial.state.name == 'RUNNING')
    wait_for(lambda: states(study).count('COMPLETE') > 2 and states(study).count('RUNNING') == beating() == 2 and have_parameters())
    workers = psutil.Process(caller.pid).children(recursive=True)
    caller.kill()
    caller.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == [] # each ends after its trial
    before = states(study)
    assert before.count('RUNNING') <= 1
    time.sleep(2)
    assert states(study) == before
    study = open_search(path, heartbeat_s=1, grace_s=2)
    time.sleep(2)
    study.optimize(partial(train_trial, recipe=QUICK, names=['rate']), n_trials=2)
    dead = [trial for trial in study.trials if trial.state.name == 'FAIL']
    assert len(dead) == before.count('RUNNING')
    repeated = [trial for trial in study.trials if 'failed_trial' in trial.system_attrs]
    assert [trial.params for trial in repeated] == [trial.params for trial in dead]
    assert {trial.state.name for trial in study.trials if trial not in dead} == {'COMPLETE'}


# The log of the lesson

def test_the_log_holds_both_searches_for_each_seed_at_equal_cost():
    file = find_root()/'data'/'tuning'/'searches.log'
    journal = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    before,seeds = file.read_bytes(),{'tpe': [], 'random': []}
    for name in optuna.get_all_study_names(journal):
        study = optuna.load_study(study_name=name, storage=journal)
        facts = study.user_attrs
        assert facts['steps'] == spent_steps(study)
        assert 7*RECIPE.steps < facts['steps'] <= 8*RECIPE.steps
        assert 0 < min(facts['fresh'], facts['other_seed'], facts['default'], study.best_value) < 1
        seeds[facts['sampler']].append(facts['seed'])
    assert seeds['tpe'] == seeds['random'] == list(range(10))
    assert file.read_bytes() == before # reading writes nothing


# The command

TINY = ['-p', 'steps', '8', '-p', 'batch', '2', '-p', 'width', '16', '-p', 'longest', '5', '--knob', 'rate', '--knob', 'depth', '--sampler', 'random']


def say(*words):
    found = CliRunner().invoke(main, ['tune', *map(str, words)])
    return found.exit_code,found.output


@pytest.mark.slow
def test_the_command_searches_and_goes_on(store, tmp_path, monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', store.uri)
    code,said = say(tmp_path/'cli.db', '--trials', 1, *TINY)
    assert code == 0, said
    assert 'trial 0' in said
    code,said = say(tmp_path/'cli.db', '--trials', 2, *TINY)
    assert code == 2
    assert '--resume' in said
    code,said = say(tmp_path/'cli.db', '--trials', 2, '--resume')
    assert code == 0, said
    study = open_search(tmp_path/'cli.db')
    assert len(study.trials) == 2
    assert {*study.trials[0].params} == {'rate', 'depth'}
    assert Recipe(**study.user_attrs['terms']['objective']['recipe']) == QUICK.model_copy(update={'depth': 1})


@pytest.mark.parametrize(('words', 'said'), [
    (['--knob', 'rates', '--trials', '1'], "did you mean 'rate'"),
    (['--trials', '1', '-p', 'colour', '3'], 'colour'),
    (['--trials', '1', '--sampler', 'best'], 'sampler'),
    ([], 'pass steps, trials or seconds'),
    (['--resume', '--trials', '1'], 'cannot be resumed'),
    (['--resume', '--trials', '1', '--sampler', 'random'], 'stand in the storage')])
def test_the_command_refuses_in_one_line(tmp_path, words, said):
    code,output = say(tmp_path/'cli.db', *words)
    assert code == 2
    assert said in output
    assert 'Traceback' not in output
    assert not (tmp_path/'cli.db').exists()
