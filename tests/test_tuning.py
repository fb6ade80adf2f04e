"Searches (lesson 09): killed and resumed, shared by processes, pruned, diverged, damaged."
import json
import os
import sqlite3
import time
from math import isnan

import optuna
import pytest
from click.testing import CliRunner
from filelock import FileLock

from mlops_course import tuning_workers as module
from mlops_course.base.files import find_root
from mlops_course.reader import search as reader
from mlops_course.reader.search import KNOBS, load_trial_net, reader_search, score_on_test, train_trial
from mlops_course.reader.training import Recipe, train
from mlops_course.store import open_store
from mlops_course.tools.cli import main
from mlops_course.tracking import find_runs
from mlops_course.tuning import (
    Range,
    Search,
    SearchLimits,
    claim_trial,
    make_sampler,
    open_tuning,
    run_trial,
    run_trials,
    search_space,
    trial_table,
)
from mlops_course.tuning_results import best_so_far, best_trial, compare_paired, importance, study_from_log
from mlops_course.tuning_workers import start_worker, tune

QUICK = Recipe(steps=8, batch=2, width=16, depth=1, longest=5)
PLAIN = reader_search(QUICK, {'rate': KNOBS['rate'], 'depth': KNOBS['depth']}, sampler='random', pruner='none', seed=3)


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path/'mlflow.db', 'tuning')


@pytest.fixture
def plain(tmp_path): return open_tuning(tmp_path/'search.db', PLAIN)


def params(tuning): return [o.params for o in tuning.study.trials]
def states(tuning): return trial_table(tuning)['state'].tolist()
def expected(search, number): return optuna.create_study(sampler=make_sampler(search, number)).ask(search_space(search)).params
def children(tuning, store): return {o['name']: o for o in find_runs(store) if o['parent'] == tuning.study.user_attrs['run']}


# What may be searched

@pytest.mark.parametrize(('knobs', 'said'), [
    ({'rates': KNOBS['rate']}, "'rates' is no knob, did you mean 'rate'"),
    ({'momentum': KNOBS['rate']}, 'choose from batch, rate, warm_up'),
    ({'seed': [0, 1]}, "'seed' is no knob"),
    ({'steps': [10, 20]}, "'steps' is no knob"),
    ({'rate': Range(low=.1, high=.01)}, 'the first must be the smaller one'),
    ({}, 'No hyperparameter to search')])
def test_a_wrong_knob_is_refused_by_name(knobs, said):
    with pytest.raises(ValueError, match=said): search_space(reader_search(knobs=knobs))


def test_a_value_that_no_recipe_takes_is_refused_before_the_search(tmp_path):
    with pytest.raises(ValueError, match='width'): open_tuning(tmp_path/'search.db', reader_search(knobs={'width': [16, 'wide']}))


def test_whole_numbers_stay_whole_and_rates_do_not():
    found = search_space(reader_search(knobs={'depth': Range(low=1, high=3), 'warm_up': Range(low=0, high=.5)}))
    assert isinstance(found['depth'], optuna.distributions.IntDistribution)
    assert isinstance(found['warm_up'], optuna.distributions.FloatDistribution)


@pytest.mark.parametrize(('given', 'said'), [({'sampler': 'best'}, 'choose tpe or random'), ({'pruner': 'harsh'}, 'choose median or halving or none')])
def test_a_wrong_sampler_or_pruner_is_refused_with_the_valid_ones(tmp_path, given, said):
    with pytest.raises(ValueError, match=said): open_tuning(tmp_path/'search.db', reader_search(**given))


def test_a_search_without_an_end_is_refused(plain):
    with pytest.raises(ValueError, match='pass steps, trials or seconds'): tune(plain, train_trial)


# The storage

def test_a_search_without_terms_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='cannot be resumed'): open_tuning(tmp_path/'no.db')
    assert not (tmp_path/'no.db').exists()


def test_other_terms_are_refused_by_name(plain):
    with pytest.raises(ValueError, match='other terms: seed 4 instead of 3'): open_tuning(plain.path, PLAIN.model_copy(update={'seed': 4}))


@pytest.mark.parametrize('content', [b'SQLite format 3\0' + b'\xff'*5000, b'no database at all, but long enough to have a header'*20])
def test_a_damaged_storage_is_said_to_be_damaged(tmp_path, content):
    (tmp_path/'search.db').write_bytes(content)
    with pytest.raises(ValueError, match='damaged, or another file'): open_tuning(tmp_path/'search.db', PLAIN)
    assert (tmp_path/'search.db').read_bytes() == content


def test_a_torn_storage_is_said_to_be_damaged(plain):
    run_trials(plain, train_trial, SearchLimits(trials=2))
    whole = plain.path.read_bytes()
    plain.path.write_bytes(whole[:5000])
    with pytest.raises(ValueError, match='damaged, or another file'): open_tuning(plain.path)


def test_the_database_of_another_program_is_left_as_it_is(tmp_path):
    with sqlite3.connect(tmp_path/'other.db') as db: db.execute('CREATE TABLE things (id)')
    db.close()
    before = (tmp_path/'other.db').read_bytes()
    with pytest.raises(ValueError, match='a database with other tables'): open_tuning(tmp_path/'other.db', PLAIN)
    assert (tmp_path/'other.db').read_bytes() == before


# What is proposed

@pytest.mark.slow
def test_a_search_in_two_sittings_proposes_what_one_sitting_does(tmp_path):
    for sampler in ('random', 'tpe'):
        search = PLAIN.model_copy(update={'sampler': sampler})
        once,first = open_tuning(tmp_path/f'{sampler}1.db', search),open_tuning(tmp_path/f'{sampler}2.db', search)
        tune(once, train_trial, trials=7)
        tune(first, train_trial, trials=3)
        twice = tune(open_tuning(first.path), train_trial, trials=7)
        assert params(twice) == params(once), sampler
        assert trial_table(twice).equals(trial_table(once)), sampler


def test_no_setting_comes_twice(plain):
    tune(plain, train_trial, trials=2)
    tune(open_tuning(plain.path), train_trial, trials=4)
    assert len({o['rate'] for o in params(plain)}) == 4


# What it costs

def test_the_budget_is_never_passed_and_pruned_steps_count(tmp_path):
    tuning = open_tuning(tmp_path/'search.db', PLAIN)
    tuning.study.pruner = optuna.pruners.ThresholdPruner(upper=0.) # all at the first report
    tune(tuning, train_trial, steps=20)
    assert states(tuning) == ['pruned']*len(states(tuning))
    assert trial_table(tuning)['steps'].tolist() == [2]*7 # the eighth might have cost 8, and only 6 were left
    assert tuning.spent == 14


def test_a_budget_smaller_than_a_trial_buys_nothing(plain):
    assert len(trial_table(tune(plain, train_trial, steps=7))) == 0


def test_no_trial_begins_after_the_time_is_up(plain):
    assert len(trial_table(tune(plain, train_trial, seconds=0))) == 0


def test_a_trial_in_hand_counts_as_a_full_one(plain):
    with plain.lock(): pass
    trial = claim_trial(plain, SearchLimits(steps=15), 'me')
    (plain.path.parent/'search.db.workers').mkdir()
    with FileLock(f'{plain.path}.workers/me'):
        assert plain.spent == 8
        assert claim_trial(plain, SearchLimits(steps=15), 'another') is None
    assert trial.number == 0


# How a trial ends

def test_a_pruned_trial_is_a_killed_child_that_says_why(tmp_path, store):
    tuning = open_tuning(tmp_path/'search.db', PLAIN)
    tuning.study.pruner = optuna.pruners.ThresholdPruner(upper=0.)
    tune(tuning, train_trial, store, trials=1)
    child = children(tuning, store)['trial 0']
    assert child['status'] == 'KILLED'
    assert child['tags']['error'].startswith('TrialPruned: CER')
    family = next(o for o in find_runs(store) if o['id'] == tuning.study.user_attrs['run'])
    assert family['status'] == 'FINISHED'
    assert family['metrics']['pruned'] == 1
    assert isnan(family['metrics']['best_cer'])


def test_a_diverged_trial_is_pruned_and_cannot_win(tmp_path, store):
    search = reader_search(QUICK, {'rate': [1e9, 2e9]}, sampler='random', pruner='none')
    tuning = tune(open_tuning(tmp_path/'search.db', search), train_trial, store, trials=2)
    assert states(tuning) == ['pruned', 'pruned']
    assert 'diverged' in children(tuning, store)['trial 0']['tags']['error']
    with pytest.raises(ValueError, match='None of 2 trials was trained to its end'): best_trial(tuning)


def test_an_error_fails_its_trial_and_its_runs_and_the_search_goes_on(tmp_path, store, monkeypatch, plain):
    def broken(*words, **more): raise OSError('the disk is gone')
    monkeypatch.setattr(reader, 'train_tracked', broken)
    with pytest.raises(OSError, match='the disk is gone'): tune(plain, train_trial, store, trials=2)
    monkeypatch.undo()
    assert states(plain) == ['failed']
    assert plain.study.trials[0].user_attrs['error'] == 'OSError: the disk is gone'
    run = plain.study.user_attrs['run']
    assert next(o for o in find_runs(store) if o['id'] == run)['status'] == 'FAILED'
    tune(plain, train_trial, store, trials=2)
    assert states(plain) == ['failed', 'complete']
    assert plain.study.user_attrs['run'] == run # the same run goes on
    assert next(o for o in find_runs(store) if o['id'] == run)['status'] == 'FINISHED'


def test_ctrl_c_leaves_no_trial_running(plain, monkeypatch):
    def stopped(*words, **more): raise KeyboardInterrupt
    monkeypatch.setattr(reader, 'train', stopped)
    with pytest.raises(KeyboardInterrupt): tune(plain, train_trial, trials=1)
    assert states(plain) == ['failed']


# Several processes

def test_a_trial_without_an_owner_is_marked_and_not_repeated(plain):
    claim_trial(plain, SearchLimits(), 'a worker that is no more')
    assert states(plain) == ['running']
    tune(plain, train_trial, trials=3)
    assert states(plain) == ['failed', 'complete', 'complete']
    assert params(plain) == [expected(PLAIN, o) for o in range(3)]


def test_a_trial_whose_worker_lives_is_left_alone(plain):
    (plain.path.parent/'search.db.workers').mkdir()
    with FileLock(f'{plain.path}.workers/alive'):
        trial = claim_trial(plain, SearchLimits(), 'alive')
        run_trials(open_tuning(plain.path), train_trial, SearchLimits(trials=2))
        assert states(plain) == ['running', 'complete']
        assert run_trial(trial, plain, train_trial) == 'complete'


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, 'nothing happened'
        time.sleep(.02)


@pytest.mark.slow
def test_a_killed_worker_loses_its_trial_and_nothing_else(tmp_path):
    search = PLAIN.model_copy(update={'recipe': {**PLAIN.recipe, **{'steps': 64}}})
    tuning = open_tuning(tmp_path/'search.db', search)
    helper = start_worker(tuning, train_trial, SearchLimits(trials=1000))
    def in_hand(): return [o for o in tuning.study.trials if o.state.name == 'RUNNING' and o.intermediate_values]
    wait_for(lambda: len(tuning.study.trials) > 2 and in_hand())
    helper.kill()
    helper.wait()
    helper.stdin.close()
    before = states(tuning)
    assert before.count('running') == 1
    lost = before.index('running')
    tune(open_tuning(tuning.path), train_trial, trials=len(before) + 1)
    assert states(tuning) == [*('failed' if i == lost else o for i,o in enumerate(before)), 'complete']
    assert params(tuning) == [expected(search, o) for o in range(len(before) + 1)]


@pytest.mark.slow
def test_two_processes_share_a_search_without_duplicates(tmp_path, store, monkeypatch):
    search = PLAIN.model_copy(update={'recipe': {**PLAIN.recipe, **{'steps': 128}}})
    tuning = open_tuning(tmp_path/'search.db', search)
    begin = module.run_trials

    def after_the_helper(*given): # it takes seconds to start, minutes on a busy machine
        wait_for(lambda: any('worker' in o.user_attrs for o in tuning.study.trials))
        return begin(*given)
    monkeypatch.setattr(module, 'run_trials', after_the_helper)
    tune(tuning, train_trial, store, trials=10, jobs=2)
    trials = tuning.study.trials
    assert {o.state.name for o in trials} == {'COMPLETE'}
    assert params(tuning) == [expected(search, o) for o in range(len(trials))]
    assert len({o.user_attrs['worker'] for o in trials}) == 2, (tmp_path/'search.db.log').read_text()
    assert sorted(children(tuning, store)) == sorted(f'trial {o}' for o in range(len(trials)))


@pytest.mark.slow
def test_a_helper_ends_when_its_pipe_is_closed(plain):
    helper = start_worker(plain, train_trial, SearchLimits(trials=100_000))
    wait_for(lambda: plain.study.trials)
    helper.stdin.close()
    assert helper.wait(timeout=60) == 1


@pytest.mark.slow
def test_what_a_dead_helper_left_is_done_by_the_caller(plain, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.fspath(plain.path.parent))
    (plain.path.parent/'sitecustomize.py').write_text("import os; os._exit(3)")
    with pytest.warns(UserWarning, match='1 of 1 workers failed'): tune(plain, train_trial, trials=2, jobs=2)
    assert states(plain) == ['complete', 'complete']


# What came of it

@pytest.mark.slow
def test_the_winner_is_the_lowest_complete_one_and_its_net_is_in_its_run(tmp_path, store, plain):
    tune(plain, train_trial, store, trials=3)
    best = best_trial(plain)
    assert best.value == trial_table(plain)['cer'].min()
    recipe = Recipe(**{**QUICK.model_dump(), **best.params})
    again,_ = train(recipe)
    mine = load_trial_net(plain, store, best)
    assert all((a == b).all() for a,b in zip(mine.state_dict().values(), again.state_dict().values()))
    assert score_on_test(mine, recipe, 20) == score_on_test(again, recipe, 20)


def test_a_net_that_was_never_on_record_is_asked_for_in_vain(plain, store):
    tune(plain, train_trial, trials=1)
    with pytest.raises(ValueError, match='searched without this store'): load_trial_net(plain, store, best_trial(plain))


def test_best_so_far_counts_what_pruned_trials_cost():
    trials = [{'state': 'PRUNED', 'reports': {'50': .1}}, {'state': 'COMPLETE', 'reports': {'50': .9, '100': .5}},
              {'state': 'FAIL', 'reports': {}}, {'state': 'COMPLETE', 'reports': {'50': .9, '100': .6}}]
    found = best_so_far(trials, [100, 149, 150, 250])
    assert [isnan(found[0]), isnan(found[1])] == [True, True]
    assert found[2:] == [.5, .5]


def test_importance_finds_the_knob_that_decides():
    search = reader_search(knobs={'rate': Range(low=.001, high=.1, log=True), 'warm_up': Range(low=0., high=.3)})
    drawn = [optuna.create_study(sampler=make_sampler(search.model_copy(update={'sampler': 'random'}), o)).ask(search_space(search)).params for o in range(60)]
    def trials(knob): return [{'state': 'COMPLETE', 'params': o, 'reports': {'192': o[knob]}} for o in drawn]
    for knob in ('rate', 'warm_up'):
        shares = importance(study_from_log(trials(knob), search))
        assert shares[knob] == max(shares.values())
        assert sum(shares.values()) == pytest.approx(1)


def test_importance_of_a_few_trials_is_refused():
    with pytest.raises(ValueError, match='have at least 4'): importance(optuna.create_study())


def test_paired_speaks_for_the_lower_and_only_outside_the_noise():
    low,high = [.4, .5, .8, .3, .7, .2],[.5, .6, .9, .4, .8, .3]
    assert compare_paired(high, low).better == 'second'
    assert compare_paired(low, high).better == 'first'
    assert compare_paired([.4, .6]*3, [.6, .4]*3).better == 'undecided'
    assert compare_paired(high[:5], low[:5]).better == 'undecided' # five that agree are luck once in 16 times
    with pytest.raises(ValueError, match='one of each for every seed'): compare_paired([.1], [.1, .2])


def test_the_log_holds_both_searches_for_each_seed_at_equal_cost():
    log = json.loads((find_root()/'data'/'tuning'/'searches.json').read_text(encoding='utf-8'))
    full = Search(**log['search']).recipe['steps']
    for o in log['searches']:
        spent = sum(max(map(int, t['reports']), default=0) for t in o['trials'])
        assert spent == o['steps']
        assert (log['full_trials'] - 1)*full < spent <= log['full_trials']*full
        done = [list(t['reports'].values())[-1] for t in o['trials'] if t['state'] == 'COMPLETE']
        assert o['claimed'] == pytest.approx(min(done), abs=1e-6)
    seeds = {s: sorted(o['seed'] for o in log['searches'] if o['sampler'] == s) for s in ('tpe', 'random')}
    assert seeds['tpe'] == seeds['random'] == list(range(len(seeds['tpe'])))


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
    tuning = open_tuning(tmp_path/'cli.db')
    assert len(tuning.study.trials) == 2
    assert Recipe(**tuning.search.recipe) == QUICK.model_copy(update={'depth': 1})


@pytest.mark.parametrize(('words', 'said'), [
    (['--knob', 'rates', '--trials', '1'], "did you mean 'rate'"),
    (['--trials', '1', '-p', 'colour', '3'], 'colour'),
    ([], 'pass steps, trials or seconds'),
    (['--resume', '--trials', '1'], 'cannot be resumed'),
    (['--resume', '--trials', '1', '--sampler', 'random'], 'stand in the storage')])
def test_the_command_refuses_in_one_line(tmp_path, words, said):
    code,output = say(tmp_path/'cli.db', *words)
    assert code == 2
    assert said in output
    assert 'Traceback' not in output
    assert not (tmp_path/'cli.db').exists()
