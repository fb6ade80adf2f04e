"The registry (lesson 11): gates, two processes at once, refusals, rollbacks, forged histories and damaged files."
import json
import os
import subprocess
import sys
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mlops_course.base.environment import fingerprint
from mlops_course.base.settings import Gates
from mlops_course.gates import Decision, Gate, better_gate, budget_gate, check_gates, lines_gate, slice_gate
from mlops_course.mlflow_server import MlflowServer
from mlops_course.model_versions import download_version, find_version, list_versions, seal_version
from mlops_course.reader.package import load_version, promote_reader, register_reader
from mlops_course.reader.recognition import OnnxRecogniser
from mlops_course.reader.tracked import train_tracked
from mlops_course.reader.training import Recipe, model_cer
from mlops_course.reader.trials import draw_trial_lines, evaluate_model, f1_by_character, model_table
from mlops_course.registry import promote, record_decision, roll_back
from mlops_course.registry_history import (
    append_history,
    champions,
    expected_aliases,
    model_history,
    parse_history,
    registry_lock,
    restore_aliases,
    tries_against_champion,
)
from mlops_course.scoring import score
from mlops_course.spool import spooled_run
from mlops_course.store import open_store
from mlops_course.tools.cli import main

TINY = Recipe(steps=2, batch=2, width=8, depth=1, longest=4)
OPEN = Gates(slices=('render',), lines=2, slice_worse=9, p95_ms=1e6, size_mb=1e6) # all but the whole is passed


def rows_of(edits, dataset='render', chars=10):
    "Scores with these edits, one line each."
    truths = {f'{dataset}:{i}': 'x'*chars for i in range(len(edits))}
    preds = {k: 'y'*e + 'x'*(chars - e) for (k, _), e in zip(truths.items(), edits)}
    rows = score(preds, truths, dict.fromkeys(truths, 0.001), dataset=dict.fromkeys(truths, dataset))
    return rows.assign(truth=list(truths.values()), pred=list(preds.values()))


def edits(rate, n=300, seed=0):
    return np.random.default_rng(seed).binomial(10, rate, n).tolist()


def failed(gates):
    return {o.name: o for o in gates if not o.passed}


# Evaluation

def test_evaluation_agrees_with_the_cer_of_the_training(model):
    rows = evaluate_model(model.net, model.lines)
    assert rows['edits'].sum()/rows['chars'].sum() == pytest.approx(model_cer(model.net, [o for part in model.lines.values() for o in part]))
    assert rows['dataset'].value_counts().to_dict() == {'render': 24, 'display': 24}
    assert (rows['seconds'] > 0).all()


def test_an_empty_dataset_is_refused_by_name(model):
    with pytest.raises(ValueError, match='No lines in the dataset display'): evaluate_model(model.net, {**model.lines, 'display': []})
    with pytest.raises(ValueError, match='No lines in the dataset all of them'): evaluate_model(model.net, {})


def test_trial_lines_are_the_same_for_a_seed_and_others_for_another():
    a, b, c = (draw_trial_lines(3, o, ('render',), 6)['render'] for o in (1, 1, 2))
    assert [o for _, o in a] == [o for _, o in b] != [o for _, o in c]
    assert all((x == y).all() for (x, _), (y, _) in zip(a, b))


def test_f1_sees_the_rare_character_that_cer_hides():
    truths = ['a'*50 + ':']*20
    rows = pd.DataFrame({'truth': truths, 'pred': ['a'*50]*20})
    found = f1_by_character(rows)
    assert (found['a'], found[':']) == (1, 0)


def test_f1_counts_what_was_invented():
    assert f1_by_character(pd.DataFrame({'truth': ['ab'], 'pred': ['aab']}))['a'] == pytest.approx(2/3)


def test_the_table_has_a_row_for_each_model_and_dataset_and_the_whole():
    trials = {'one': pd.concat([rows_of([1]*30), rows_of([0]*30, 'display')]), 'two': pd.concat([rows_of([0]*30), rows_of([2]*30, 'display')])}
    cers = model_table(trials, ['cer'])['cer'].unstack()
    assert cers.loc[['whole', 'render', 'display'], ['one', 'two']].to_numpy().tolist() == [[.05, .1], [.1, 0], [0, .2]]


# Gates

def test_a_difference_inside_the_noise_does_not_pass():
    old = [1, 0, 2, 0, 3]*60
    refused = failed(check_gates(rows_of([0, *old[2:], 0]), rows_of(old), 1, OPEN)) # one edit fewer, most of them elsewhere
    assert list(refused) == ['whole']
    assert 'inside the noise' in refused['whole'].said
    assert refused['whole'].over > 0


def test_a_clear_gain_passes():
    assert failed(check_gates(rows_of(edits(.1, seed=1)), rows_of(edits(.2)), 1, OPEN)) == {}


def test_the_same_model_again_does_not_pass():
    assert 'whole' in failed(check_gates(rows_of([1]*50), rows_of([1]*50), 1, OPEN))


def test_a_better_average_does_not_excuse_a_ruined_slice():
    old = pd.concat([rows_of(edits(.5)), rows_of(edits(.1), 'display')])
    new = pd.concat([rows_of(edits(.1, seed=1)), rows_of(edits(.3, seed=1), 'display')])
    refused = failed(check_gates(new, old, 1, OPEN.model_copy(update={'slice_worse': .02})))
    assert list(refused) == ['slice display']
    assert refused['slice display'].over > .15
    assert 'worse, over by' in refused['slice display'].said


def test_a_slice_of_few_lines_is_not_sure_enough():
    gate = slice_gate('display', rows_of([0, 1, 2, 1, 0, 3]), rows_of([1, 2, 0, 0, 1, 3]), .02)
    assert not gate.passed
    assert 'not sure enough' in gate.said


def test_a_slice_that_did_not_change_passes_a_limit_of_zero():
    assert slice_gate('render', rows_of([1, 2, 0]*20), rows_of([1, 2, 0]*20), 0).passed


def test_a_missing_slice_is_refused_with_the_number_of_lines_it_lacks():
    gate = lines_gate(rows_of([0]*50), Gates(slices=('render', 'display'), lines=40))
    assert (gate.passed, gate.over) == (False, 40)
    assert 'display has 0: 40 too few' in gate.said


def test_two_trials_on_other_lines_are_not_compared():
    with pytest.raises(ValueError, match='items missing'): check_gates(rows_of([0]*30), rows_of([0]*29), 1, OPEN)


@pytest.mark.parametrize('column', ['edits', 'chars', 'dataset'])
@pytest.mark.parametrize('which', ['new', 'old'])
def test_a_missing_number_is_no_perfect_score(column, which):
    trials = {'new': rows_of(edits(.4)), 'old': rows_of(edits(.2))}
    trials[which][column] = trials[which][column].astype(object).where(trials[which]['edits'] < 2, None)
    with pytest.raises(ValueError, match='rows have no value in dataset, edits, chars'): check_gates(trials['new'], trials['old'], 1, OPEN)


def test_budgets_say_by_how_much_they_were_missed():
    assert budget_gate('size', 6.5, 5, 'MB').over == 1.5
    assert budget_gate('size', 5, 5, 'MB').passed
    assert not budget_gate('latency', nan, 50, 'ms').passed # too few lines to tell


# History

def test_rollbacks_go_back_step_by_step():
    steps = [{'what': 'promoted', 'version': o} for o in (1, 2, 3)] + [{'what': 'rolled back', 'version': 2}, {'what': 'promoted', 'version': 5}]
    assert champions(steps) == [1, 2, 5]
    assert expected_aliases([*steps, {'what': 'registered', 'version': 6}, {'what': 'refused', 'version': 6}]) == {'champion': 5}
    assert expected_aliases(steps[:0]) == {}


def test_a_champion_that_is_promoted_again_is_one_champion():
    steps = [{'what': 'promoted', 'version': o} for o in (1, 2, 2, 1, 1)]
    assert champions(steps) == [1, 2, 1]
    assert champions([*steps, {'what': 'rolled back', 'version': 2}]) == [1, 2]


def test_tries_count_the_refusals_by_this_champion():
    steps = [{'what': o} for o in ('registered', 'promoted', 'refused', 'canary', 'refused')]
    assert tries_against_champion(steps) == 3
    assert tries_against_champion([*steps, {'what': 'promoted'}]) == tries_against_champion([*steps, {'what': 'rolled back'}]) == 1


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A store in which two runs and their lines are ready; the tests give each registry a name of its own."
    folder = tmp_path_factory.mktemp('registry')
    store = open_store(folder/'mlflow.db')
    made = [train_tracked(TINY.model_copy(update={'seed': o}), store, f'run {o}') for o in range(3)]
    lines = draw_trial_lines(24, 5, ('render', 'display'), 4)
    return type('Model', (), dict(store=store, net=made[0][0], runs=[o for _, o in made], lines=lines, folder=folder))


@pytest.fixture
def fill(model, request):
    "A registry of its own with three versions, all of them promoted unless told otherwise."
    name = f'reader-{fingerprint(request.node.name)[:6]}'
    def make(*what, store=None):
        for i, o in enumerate(what or ('promoted',)*3):
            number = register_reader(store or model.store, model.runs[i], model.lines, 'ana', 'test', name)
            if o == 'promoted':
                with registry_lock(model.store, name): append_history(model.store, name, 'promoted', number, 'ana', 'test')
        return name
    return make


def test_a_version_carries_lineage_card_signature_and_example(model, fill, tmp_path):
    name = fill('registered')
    version = find_version(model.store, 1, name)
    assert (version['run'], version['aliases'], version['data']) == (model.runs[0], ['challenger'], 'v1')
    assert len(version['git']) >= 12
    assert 'steps=2' in version['recipe']
    package = download_version(model.store, version, tmp_path)
    assert {'card.md', 'MLmodel', 'input_example.json', 'reader.py'} <= {o.name for o in package.iterdir()}
    assert model.runs[0] in (package/'card.md').read_text(encoding='utf-8')
    rows = [o.split('|')[1].strip() for o in (package/'card.md').read_text(encoding='utf-8').split('| | |')[1].splitlines()[2:]]
    assert rows == ['run', 'git', 'data', 'data_dvc', 'beyond_recipe', 'recipe'] # each is written by some training
    assert 'tensor-spec' in (package/'MLmodel').read_text(encoding='utf-8')
    assert [o for o in package.rglob('*') if o.suffix in ('.pkl', '.pickle', '.pt', '.pth')] == []
    assert model_cer(load_version(model.store, 1, name), model.lines['render']) == model_cer(model.net, model.lines['render'])


def test_a_run_without_a_model_is_not_registered(model):
    with spooled_run(model.store, 'no model') as run: pass
    with pytest.raises(ValueError, match='it kept no model'): register_reader(model.store, run.id, model.lines, 'ana', 'test', 'reader-none')


def test_nobody_and_no_reason_are_refused(model, fill):
    name = fill('registered')
    for who, why in (('', 'test'), ('ana', ' ')):
        with pytest.raises(ValueError, match='Say who does this, and why'): promote_reader(model.store, model.lines, who, why, name=name)
        with pytest.raises(ValueError, match='Say who does this, and why'): roll_back(model.store, who, why, name)


def test_a_refused_promotion_leaves_the_aliases_and_is_on_record(model, fill):
    name = fill('promoted', 'registered')
    before = model.store.client.get_registered_model(name).aliases
    decision = promote_reader(model.store, model.lines, 'ben', 'try', name=name, gates=OPEN.model_copy(update={'size_mb': 1e-6}))
    assert not decision.passed
    assert model.store.client.get_registered_model(name).aliases == before
    last = model_history(model.store, name)[-1]
    assert (last['what'], last['version'], last['who'], last['why']) == ('refused', 2, 'ben', 'try')
    assert any(o.startswith('size: ') and 'over by' in o for o in last['gates'])
    tags = find_version(model.store, 2, name)
    assert (tags['decision'], tags['decided_by']) == ('refused', 'ben')
    assert 'size: ' in tags['because']
    assert 'decision' not in find_version(model.store, 1, name)


def test_the_first_champion_needs_the_budgets_only(model, fill):
    name = fill('registered')
    decision = promote_reader(model.store, model.lines, 'ana', 'first', name=name, gates=OPEN)
    assert [o.name for o in decision.gates] == ['lines', 'latency', 'size']
    assert expected_aliases(model_history(model.store, name)) == {'champion': 1}
    with pytest.raises(ValueError, match='is the champion already'): promote_reader(model.store, model.lines, 'ana', 'again', 1, name, OPEN)


def test_a_decision_against_a_champion_that_is_gone_is_not_recorded(model, fill):
    name = fill('promoted', 'promoted', 'registered')
    with pytest.raises(ValueError, match='version 2 became champion'): record_decision(model.store, name, Decision(3, 1, []), 'ben', 'late')
    assert 'decision' not in find_version(model.store, 3, name)
    assert len(model_history(model.store, name)) == 5


def test_a_challenger_that_is_set_by_hand_may_be_promoted_and_a_champion_is_none(model, fill):
    name = fill('promoted', 'registered', 'registered')
    model.store.client.set_registered_model_alias(name, 'challenger', '2')
    record_decision(model.store, name, Decision(2, 1, [Gate('size', 'small')]), 'ana', 'test')
    assert {k: str(v) for k, v in model.store.client.get_registered_model(name).aliases.items()} == {'champion': '2'}
    assert find_version(model.store, 2, name)['because'] == 'test'


def test_more_tries_ask_for_a_wider_interval():
    old,new = rows_of(edits(.2)), rows_of(edits(.19, seed=1))
    assert better_gate(new, old).passed
    assert not better_gate(new, old, level=1 - .05/100).passed
    assert 'whole' in failed(check_gates(new, old, 1, OPEN, tries=100))


def test_a_version_that_plain_mlflow_registered_is_sealed_and_promoted(model, tmp_path):
    client, name = model.store.client, 'plain'
    (tmp_path/'model.txt').write_text('weights')
    client.create_registered_model(name)
    client.create_model_version(name, tmp_path.as_uri())
    def trial(package):
        assert (package/'model.txt').read_text() == 'weights'
        return rows_of([1]*30)
    with pytest.raises(ValueError, match='Call seal_version'): promote(model.store, trial, 'ana', 'test', 1, name)
    seal_version(model.store, 1, name)
    assert seal_version(model.store, 1, name) == find_version(model.store, 1, name)['fingerprint']
    assert promote(model.store, trial, 'ana', 'test', 1, name, lambda new, old, size_mb: [Gate('size', f'{size_mb}')]).passed
    (tmp_path/'model.txt').write_text('weighty')
    with pytest.raises(ValueError, match='already, and its files have'): seal_version(model.store, 1, name)


def test_rollback_twice_reaches_the_first_champion_and_a_third_is_refused(model, fill):
    name = fill()
    assert [roll_back(model.store, 'cleo', 'night', name) for _ in range(2)] == [2, 1]
    with pytest.raises(ValueError, match='nothing to roll back to'): roll_back(model.store, 'cleo', 'night', name)
    assert find_version(model.store, 'champion', name)['version'] == 1


@pytest.mark.parametrize(('what', 'version', 'said'), [('rolled back', 1, 'has not been champion before'), ('rolled back', 2, 'has not been champion before'),
                                                       ('promoted', 9, 'version=9.* not found')])
def test_an_entry_that_cannot_be_followed_is_not_written(model, fill, what, version, said):
    name = fill('promoted', 'registered')
    with pytest.raises(ValueError, match=said), registry_lock(model.store, name): append_history(model.store, name, what, version, 'ana', 'test')
    assert len(model_history(model.store, name)) == 3


def test_a_damaged_artifact_is_refused_by_its_fingerprint(model, fill):
    name = fill('promoted', 'promoted')
    place = Path(find_version(model.store, 1, name)['source'].removeprefix('file://'))/'artifacts'/'recogniser'/'recogniser.json'
    whole = place.read_bytes()
    try:
        place.write_bytes(whole + b' ')
        with pytest.raises(ValueError, match='damaged or exchanged'): load_version(model.store, 1, name)
        with pytest.raises(ValueError, match='damaged or exchanged'): roll_back(model.store, 'cleo', 'night', name)
        assert find_version(model.store, 'champion', name)['version'] == 2
    finally: place.write_bytes(whole)


def test_an_alias_moved_by_hand_is_seen_and_put_back(model, fill):
    name = fill()
    model.store.client.set_registered_model_alias(name, 'champion', '1')
    with pytest.raises(ValueError, match='champion points to 1, and the history says 3'): roll_back(model.store, 'cleo', 'night', name)
    assert restore_aliases(model.store, name) == {'champion': 3}
    assert roll_back(model.store, 'cleo', 'night', name) == 2


def test_a_step_that_was_cut_off_before_the_alias_moved_is_finished_by_settle(model, fill, monkeypatch):
    name = fill('promoted', 'registered')
    def power_cut(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr('mlops_course.registry_history.restore_aliases', power_cut)
        with pytest.raises(KeyboardInterrupt), registry_lock(model.store, name): append_history(model.store, name, 'promoted', 2, 'ana', 'test')
    with pytest.raises(ValueError, match='a step was cut off'): model_history(model.store, name)
    restore_aliases(model.store, name)
    assert find_version(model.store, 'champion', name)['version'] == 2
    assert model_history(model.store, name)[-1]['what'] == 'promoted'


@pytest.mark.parametrize('what', ['changed', 'changed with a fresh hash', 'removed'])
def test_a_forged_history_is_refused(model, fill, what):
    name = fill('promoted', 'promoted')
    client, tags = model.store.client, model.store.client.get_registered_model(name).tags
    key = sorted(tags)[1]
    text = tags[key].replace('"ana"', '"bob"')
    assert text != tags[key]
    if what == 'changed': client.set_registered_model_tag(name, key, text)
    else: client.delete_registered_model_tag(name, key)
    if what == 'changed with a fresh hash': client.set_registered_model_tag(name, f'history.000002.{fingerprint(text)}', text)
    with pytest.raises(ValueError, match=r'history of .* is damaged: entry \d'): roll_back(model.store, 'cleo', 'night', name)
    client.set_registered_model_alias(name, 'champion', '1')
    with pytest.raises(ValueError, match=r'history of .* is damaged: entry \d'): restore_aliases(model.store, name)
    assert client.get_registered_model(name).aliases['champion'] in (1, '1')


def test_two_entries_of_one_number_are_a_fork():
    texts = [json.dumps({'n': 1, 'what': 'promoted', 'version': o, 'before': ''}) for o in (1, 2)]
    _, wrong = parse_history({f'history.000001.{fingerprint(o)}': o for o in texts})
    assert wrong == ['entry 1 does not follow the one before it']


@pytest.mark.parametrize('text', ['{"n": 1', '[]', '7', ''])
def test_an_entry_that_cannot_be_read_is_a_damaged_one(text):
    whole = json.dumps({'n': 1, 'what': 'promoted', 'version': 1, 'before': ''})
    assert parse_history({f'history.000001.{fingerprint(whole)}': text})[1] == ['entry 1 was changed or cut off after it was written']
    assert parse_history({f'history.000001.{fingerprint(text)}': text})[1] == ['entry 1 does not follow the one before it']


def test_a_tag_of_somebody_else_is_no_entry():
    assert parse_history({'history.note': 'moved here in May', 'history.': '', 'owner': 'ana'}) == ([], [])


def test_an_unknown_version_names_those_there_are(model, fill):
    name = fill('promoted', 'registered')
    with pytest.raises(ValueError, match=r"has no 'champoin'. Its versions: 1 \(champion\), 2 \(challenger\)"): load_version(model.store, 'champoin', name)


def test_a_number_names_a_version_before_an_alias(model, fill):
    name = fill('promoted', 'registered')
    model.store.client.set_registered_model_alias(name, '2', '1')
    assert find_version(model.store, 2, name)['version'] == 2


PROMOTE = '''
import sys
from pathlib import Path
from time import sleep
from mlops_course.base.settings import Gates
from mlops_course.gates import check_gates
from mlops_course.reader.package import load_packaged
from mlops_course.reader.trials import evaluate_model, draw_trial_lines
from mlops_course.registry import promote
from mlops_course.store import open_store
db, name, version, ready, other = sys.argv[1:]
def together(*words): # both have tried their model before either decides
    Path(ready).touch()
    while not Path(other).exists(): sleep(.02)
    return [o._replace(over=0.) for o in check_gates(*words, Gates(slices=(), lines=2))]
lines = draw_trial_lines(24, 5, ('render', 'display'), 4)
try: print(promote(open_store(Path(db)), lambda o: evaluate_model(load_packaged(o), lines), f'process {version}', 'race', version, name, together).passed)
except ValueError as e: print(e)
'''


@pytest.mark.slow
def test_of_two_promotions_at_once_one_wins_and_the_other_must_try_again(model, fill, tmp_path):
    name = fill('promoted', 'registered', 'registered')
    flags = [str(tmp_path/o) for o in 'ab']
    racers = [subprocess.Popen([sys.executable, '-c', PROMOTE, str(model.folder/'mlflow.db'), name, version, *pair], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True) for version, pair in (('2', flags), ('3', flags[::-1]))]
    said = [o.communicate(timeout=300) for o in racers]
    outs = sorted(out.strip().splitlines()[-1] if out.strip() else err for out, err in said)
    assert 'True' in outs, said
    assert any('became champion. Promote again' in o for o in outs), said
    entries = model_history(model.store, name)
    assert [o['what'] for o in entries].count('promoted') == 2
    assert find_version(model.store, 'champion', name)['version'] == entries[-1]['version']


@pytest.mark.slow
def test_it_works_over_a_server_and_a_stranger_loads_the_champion(model, fill, tmp_path):
    with MlflowServer(f'sqlite:///{(tmp_path/"served.db").as_posix()}', tmp_path/'served') as server:
        store = open_store(server.uri, folder=tmp_path)
        net, run_id = train_tracked(TINY, store, 'remote')
        register_reader(store, run_id, model.lines, 'ana', 'test')
        assert promote_reader(store, model.lines, 'ana', 'first', gates=OPEN).passed
        assert model_cer(load_version(store), model.lines['render']) == model_cer(net, model.lines['render'])
        code = "import mlflow; m = mlflow.pyfunc.load_model('models:/reader@champion'); print(list(m.predict(m.input_example).columns))"
        done = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'MLFLOW_TRACKING_URI': server.uri}, capture_output=True, text=True)
        assert done.stdout.strip().endswith("['text', 'confidence']"), done.stderr


# The command

def test_models_lists_shows_and_rolls_back(model, fill, monkeypatch, tmp_path):
    name = fill()
    monkeypatch.setenv('MLFLOW_TRACKING_URI', model.store.uri)
    def course(*words):
        result = CliRunner().invoke(main, ['models', *words, '--name', name])
        assert 'Traceback' not in result.output
        return result.exit_code, result.output
    code, text = course('list')
    assert code == 0
    assert [json.loads(o)['version'] for o in text.splitlines()] == [1, 2, 3]
    assert json.loads(text.splitlines()[-1])['aliases'] == ['champion']
    assert model.runs[2] in course('show', 'champion')[1]
    assert course('rollback', '--who', 'cleo', '--why', 'night')[0] == 0
    assert find_version(model.store, 'champion', name)['version'] == 2
    code, text = course('promote', '2', '--who', 'ana', '--why', 'again')
    assert (code, 'is the champion already' in text) == (2, True)
    assert 'cleo' in course('history')[1]


@pytest.mark.slow
def test_models_export_writes_what_an_image_is_built_with(model, fill, monkeypatch, tmp_path):
    name = fill()
    monkeypatch.setenv('MLFLOW_TRACKING_URI', model.store.uri)
    result = CliRunner().invoke(main, ['models', 'export', '2', '--out', str(tmp_path), '--name', name])
    assert result.exit_code == 0, result.output
    drawn = model.lines['render']
    assert model_cer(OnnxRecogniser(tmp_path/'model.onnx'), drawn) == model_cer(load_version(model.store, 2, name), drawn)
    assert sorted(o.name for o in tmp_path.iterdir()) == ['model.onnx', 'recogniser.json']


def test_models_promote_says_refused_and_exits_with_1(model, fill, monkeypatch):
    name = fill('promoted', 'registered')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', model.store.uri)
    monkeypatch.setenv('MLOPS_COURSE_PARAMS__GATES__SIZE_MB', '.000001')
    result = CliRunner().invoke(main, ['models', 'promote', '--who', 'ana', '--why', 'try', '--name', name, '--lines', '20'])
    assert result.exit_code == 1
    assert 'REFUSED size' in result.output
    assert list_versions(model.store, name)[0]['aliases'] == ['champion']
