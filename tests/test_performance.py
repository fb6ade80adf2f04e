"Performance (lesson 20): where time goes, a cache that many processes share, and folders that are read though workers die."
import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

import cloudpickle
import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from mlops_course.base.images import write_png
from mlops_course.base.settings import load_settings
from mlops_course.cache import ReadingCache, page_key
from mlops_course.performance import ScalingModel, amdahl_speedup, find_hotspots, fit_scaling, measure_cost
from mlops_course.reader import folder as folders
from mlops_course.reader.folder import list_images, read_folder, reader_id, run_batches
from mlops_course.reader.lines import line_batch
from mlops_course.record import ReadingLog
from mlops_course.tools.cli import main
from mlops_course.workers import WorkerPool, local_cluster, open_pool

cloudpickle.register_pickle_by_value(sys.modules[__name__]) # workers cannot import the tests


@pytest.fixture(scope='module')
def lines(): return line_batch(6, 0, 'v1', 'test')


@pytest.fixture
def folder(lines, tmp_path):
    "Six lines as files, one of them inside a folder."
    (tmp_path/'in'/'deeper').mkdir(parents=True)
    for i, (image, _) in enumerate(lines): write_png(tmp_path/'in'/('deeper' if i == 5 else '')/f'{i}.png', image)
    return tmp_path/'in'


# Profile

def test_spots_tell_own_time_from_the_time_of_what_was_called():
    def busy(): return sum(i*i for i in range(200_000))
    def idle(): return busy()
    found = find_hotspots(idle)
    found = found.set_index(found['where'].str.rpartition('.')[2])
    assert found.loc['idle', 'all'] > .9 > .1 > found.loc['idle', 'own']
    assert found.loc['busy', 'calls'] == 1


def test_spots_share_out_the_whole():
    assert find_hotspots(lambda: sorted(range(1000)))['own'].sum() == pytest.approx(1)


def test_cost_takes_the_best_of_its_tries():
    waits = iter([.05, .001, .05])
    assert measure_cost(lambda: time.sleep(next(waits)), 1).wall_ms < 40


@pytest.mark.parametrize(('share', 'times', 'expected'), [(.5, 2, 4/3), (.6, np.inf, 2.5), (0, np.inf, 1), (1, 3, 3), (1, np.inf, np.inf), (.5, .5, 2/3)])
def test_gain_is_amdahls_law(share, times, expected): assert amdahl_speedup(share, times) == pytest.approx(expected)


@pytest.mark.parametrize(('share', 'times'), [(-.1, 2), (1.1, 2), (float('nan'), 2), (.5, 0), (.5, -1)])
def test_gain_refuses_what_is_no_share(share, times):
    with pytest.raises(ValueError, match='from 0 to 1'): amdahl_speedup(share, times)


# Keys

def test_a_key_is_of_content_and_reader():
    assert len({page_key(b'a', 'r'), page_key(b'b', 'r'), page_key(b'a', 's'), page_key(b' a', 'r'), page_key(b'', 'r a')}) == 5
    assert page_key(b'a', 'r') == page_key(b'a', 'r')


def test_another_model_or_another_task_is_another_reader(tmp_path):
    shipped = load_settings().paths.data/'recogniser'
    (tmp_path/'model.onnx').write_bytes((shipped/'model.onnx').read_bytes())
    assert reader_id(tmp_path) == reader_id(shipped) == reader_id() # wherever it lies
    (tmp_path/'model.onnx').write_bytes((shipped/'model.onnx').read_bytes() + b' ')
    assert len({reader_id(tmp_path), reader_id(), reader_id(line=True)}) == 3


@pytest.mark.parametrize('name', ['reader/boxes.py', 'base/images.py', 'batching.py', 'uploads.py'])
def test_other_code_on_the_way_from_a_file_to_its_text_is_another_reader(tmp_path, monkeypatch, name):
    package = Path(folders.__file__).parent.parent
    shutil.copytree(package, tmp_path/'code', ignore=shutil.ignore_patterns('__pycache__'))
    monkeypatch.setattr(folders, '__file__', str(tmp_path/'code'/'reader'/'folder.py'))
    before = reader_id()
    with (tmp_path/'code'/name).open('a', encoding='utf-8') as f: f.write('# changed')
    assert reader_id() != before


def test_another_decoder_of_images_is_another_reader(monkeypatch):
    before, version = reader_id(), folders.version_of
    monkeypatch.setattr(folders, 'version_of', lambda name: '1.0' if name == 'pillow' else version(name))
    assert reader_id() != before


# Cache

def test_an_empty_cache_takes_the_first_value(tmp_path):
    cache = ReadingCache(tmp_path/'c.db')
    assert cache.get('a') is None
    cache.put('a', {'text': 'Zürich'})
    assert (cache.get('a'), cache.hits, cache.misses) == ({'text': 'Zürich'}, 1, 1)


def test_a_cache_outlives_its_connection(tmp_path):
    cache = ReadingCache(tmp_path/'c.db')
    cache.put('a', 1)
    cache.close()
    assert (ReadingCache(tmp_path/'c.db').get('a'), cache.get('a')) == (1, 1)


def test_a_full_cache_keeps_what_is_asked_for(tmp_path):
    cache = ReadingCache(tmp_path/'c.db', .3)
    for i in range(400):
        cache.put(f'{i}', 'x'*3000)
        cache.get('0')
    assert [cache.get(o) is not None for o in ('0', '399', '1')] == [True, True, False]
    assert cache.mb <= .3
    cache.close()
    assert (tmp_path/'c.db').stat().st_size < .5e6 # what was let go is used again


def test_what_is_put_again_replaces(tmp_path):
    cache = ReadingCache(tmp_path/'c.db')
    for value in (1, 2): cache.put('a', value)
    assert (len(cache), cache.get('a')) == (1, 2)


def test_one_value_cannot_empty_a_cache(tmp_path):
    cache = ReadingCache(tmp_path/'c.db', .2)
    for i in range(10): cache.put(f'{i}', 'x'*1000)
    cache.put('huge', 'x'*100_000)
    assert (cache.get('huge'), len(cache)) == (None, 10)


@pytest.mark.parametrize('damage', ["value = '{\"text\": 1'", "value = replace(value, 'Central', 'Centre')", "value = ''", "digest = ''"])
def test_a_damaged_value_is_no_hit(tmp_path, damage):
    cache = ReadingCache(tmp_path/'c.db')
    cache.put('a', {'text': 'Central'})
    cache.ask(f'update readings set {damage}') # noqa: S608 (our own words)
    assert cache.get('a') is None
    cache.put('a', {'text': 'Central'}) # and it can be mended
    assert cache.get('a') == {'text': 'Central'}


def test_a_value_under_another_key_is_no_hit(tmp_path):
    cache = ReadingCache(tmp_path/'c.db')
    cache.put('a', 'Central')
    cache.ask("update readings set key = 'b'")
    assert cache.get('b') is None


def test_a_cache_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self): return Path.touch, (tmp_path/'ran',)
    cache = ReadingCache(tmp_path/'c.db')
    cache.put('a', 'Central')
    cache.ask('update readings set value = ?', pickle.dumps(Trap()).decode('latin-1'))
    assert cache.get('a') is None
    assert not (tmp_path/'ran').exists()


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    (tmp_path/'c.db').write_bytes(b'no database'*1000)
    with pytest.raises(ValueError, match='Delete it'): ReadingCache(tmp_path/'c.db').get('a')


def test_a_cache_that_is_damaged_inside_says_what_to_do(tmp_path):
    cache = ReadingCache(tmp_path/'c.db')
    for i in range(40): cache.put(f'{i}', 'x'*4000)
    cache.close()
    whole = bytearray((tmp_path/'c.db').read_bytes())
    for at in range(8192, len(whole), 4096): whole[at:at + 64] = b'?'*64
    (tmp_path/'c.db').write_bytes(whole)
    with pytest.raises(ValueError, match=r'or damaged \(database disk image is malformed\)\. Delete it'): cache.get('7')
    with pytest.raises(sqlite3.OperationalError): ReadingCache(tmp_path/'d.db').ask('select from')


@pytest.mark.parametrize('value', [{1, 2}, np.zeros(2), '\ud800', [b'a']])
def test_what_is_no_json_is_refused_and_the_rest_stays(tmp_path, value):
    cache = ReadingCache(tmp_path/'c.db')
    cache.put('page', 1)
    with pytest.raises(ValueError, match="value under 'page' is no JSON"): cache.put('page', value)
    assert cache.get('page') == 1


def test_a_cache_without_room_is_refused(tmp_path):
    with pytest.raises(ValueError, match='expected at least'): ReadingCache(tmp_path/'c.db', .01)


def test_a_cache_travels_as_its_place(tmp_path):
    cache = ReadingCache(tmp_path/'c.db', 5)
    cache.put('a', 1)
    other = pickle.loads(pickle.dumps(cache)) # noqa: S301 (our own)
    assert (other.get('a'), other.most_mb, other.hits, cache.hits) == (1, 5, 1, 0)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the machine has no fork')
def test_a_child_reads_a_cache_that_a_thread_of_its_parent_was_using(tmp_path):
    cache, inside, over = ReadingCache(tmp_path/'c.db'), Event(), Event()
    cache.put('a', 1)
    cache.db.create_function('wait', 0, lambda: inside.set() or over.wait())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(cache.ask, 'select wait()')
        assert inside.wait(20)
        if not (child := os.fork()):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            try: os._exit(0 if cache.get('a') == 1 else 1)
            finally: os._exit(1)
        status = os.waitpid(child, 0)[1]
        over.set()
    assert status == 0


def test_threads_share_a_cache(tmp_path):
    cache = ReadingCache(tmp_path/'c.db')
    with ThreadPoolExecutor(8) as pool: list(pool.map(lambda i: cache.put(str(i % 50), i % 50), range(400)))
    assert [cache.get(str(i)) for i in range(50)] == list(range(50))


HAMMER = """import sys
from mlops_course.cache import ReadingCache
cache = ReadingCache(sys.argv[1], .5)
print('ready', flush=True)
for i in range(int(sys.argv[2])):
    key = str(i % 97)
    found = cache.get(key)
    assert found is None or found == {'key': key, 'text': key*900}, found
    cache.put(key, {'key': key, 'text': key*900})
"""


@pytest.mark.slow
def test_processes_share_a_cache_and_one_may_be_killed(tmp_path):
    def start(n): return subprocess.Popen([sys.executable, '-c', HAMMER, tmp_path/'c.db', str(n)], stdout=subprocess.PIPE)
    crowd = [start(500) for _ in range(2)]
    victim = start(10**9)
    for o in (*crowd, victim): assert o.stdout.readline() == b'ready\n'
    time.sleep(.3)
    victim.kill()
    assert [o.wait(120) for o in crowd] == [0, 0]
    victim.wait()
    for o in (*crowd, victim): o.stdout.close()
    cache = ReadingCache(tmp_path/'c.db', .5)
    assert cache.ask('pragma integrity_check') == [('ok',)]
    assert all(cache.get(o) == {'key': o, 'text': o*900} for o in cache.keys()) # noqa: SIM118 (no mapping)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='Windows does not fork')
def test_a_fork_opens_the_cache_for_itself(tmp_path):
    cache = ReadingCache(tmp_path/'c.db')
    cache.put('a', 1)
    child = os.fork()
    if not child:
        cache.put('b', 2)
        os._exit(0 if len(cache.opened) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (cache.get('a'), cache.get('b')) == (1, 2)


# Record

def test_half_a_line_is_cut_off_and_the_rest_stays(tmp_path):
    path = tmp_path/'r.jsonl'
    with ReadingLog(path) as record:
        for o in 'ab': record.add({'file': o, 'key': o})
    path.write_bytes(path.read_bytes()[:-3])
    with ReadingLog(path) as record:
        assert set(record.done) == {('a', 'a')}
        record.add({'file': 'c', 'key': 'c'})
    assert [json.loads(o)['file'] for o in path.read_text().splitlines()] == ['a', 'c']


def test_a_record_takes_a_file_name_that_is_not_utf_8(tmp_path):
    line = {'file': 'caf\udce9 für.png', 'key': 'k'} # as Python lists such a name of Linux
    with ReadingLog(tmp_path/'r.jsonl') as record: record.add(line)
    assert json.loads((tmp_path/'r.jsonl').read_text(encoding='utf-8')) == line
    with ReadingLog(tmp_path/'r.jsonl') as record: assert record.done == {(line['file'], 'k'): ''}


def test_a_record_has_one_writer(tmp_path):
    with ReadingLog(tmp_path/'r.jsonl'), pytest.raises(BlockingIOError, match='Another process writes'): ReadingLog(tmp_path/'r.jsonl')
    ReadingLog(tmp_path/'r.jsonl').close()


@pytest.mark.parametrize('text', ['no json\n', '[1]\n', '{"name": 1}\n', 'one line, no end', '{"file": "a"}\nnotes\n', '{"file": half\n'])
def test_another_file_is_no_record_and_stays_as_it_is(tmp_path, text):
    (tmp_path/'r.jsonl').write_text(text)
    for _ in range(2):
        with pytest.raises(ValueError, match='is no record'): ReadingLog(tmp_path/'r.jsonl')
    assert (tmp_path/'r.jsonl').read_text() == text


# Folder

def told(part, began, sleep=0., poison='', **_):
    "Reads nothing, but tells what it was given; dies where it finds `poison`."
    for key, data in part.items():
        with open(began, 'a', encoding='utf-8') as f: f.write(f'{key} {os.getpid()}\n')
        time.sleep(sleep)
        if poison and poison.encode() in data: os._exit(1)
    return {k: {'text': f'{len(v)} bytes'} for k, v in part.items()}


@pytest.fixture
def told_here(tmp_path): return partial(told, began=str(tmp_path/'began'))


def write_files(folder, n, **more):
    folder.mkdir(exist_ok=True)
    for name, text in ({f'{i:02}.png': f'page {i}' for i in range(n)} | more).items(): (folder/name).write_text(text)
    return folder


def begun(tmp_path): return Counter(o.split()[0] for o in (tmp_path/'began').read_text().splitlines())


def test_lines_of_a_folder_are_read_and_bad_files_told(folder, lines, tmp_path):
    (folder/'bad.png').write_bytes(b'no image')
    (folder/'notes.txt').write_text('not looked at')
    found = {o['file']: o for o in read_folder(folder, tmp_path/'r.jsonl', line=True)}
    assert sorted(found) == ['0.png', '1.png', '2.png', '3.png', '4.png', 'bad.png', 'deeper/5.png']
    assert 'not an image' in found['bad.png']['error']
    assert str(tmp_path) not in found['bad.png']['error']
    assert sum(found[o.relative_to(folder).as_posix()]['text'] == text for o, (_, text) in zip(list_images(folder)[:5], lines)) >= 4
    assert [json.loads(o) for o in (tmp_path/'r.jsonl').read_text(encoding='utf-8').splitlines()] == list(found.values())


def test_a_folder_is_read_within_the_limits_of_the_settings(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('MLOPS_COURSE_PARAMS__OCR__MAX_PIXELS', '10')
    monkeypatch.setenv('MLOPS_COURSE_PATHS__RUNS', str(tmp_path)) # what is in the cache was read within other limits
    done = CliRunner().invoke(main, ['read', str(folder), '--lines', '--record', str(tmp_path/'r.jsonl'), '--jobs', '1'])
    *found, told = (json.loads(o) for o in done.stdout.splitlines())
    assert (done.exit_code, told['read'], told['errors']) == (1, 0, 6)
    assert all('at most 10 are read' in o['error'] for o in found)


def test_stopped_in_the_middle_it_goes_on(tmp_path, told_here):
    write_files(tmp_path/'in', 10)
    evening = read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=told_here, at_once=2)
    for _ in range(3): next(evening)
    evening.close()
    rest = list(read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=told_here, at_once=2))
    assert len(rest) == 7
    assert len({json.loads(o)['file'] for o in (tmp_path/'r.jsonl').read_text().splitlines()}) == 10


def test_a_changed_file_is_read_again_and_a_known_one_is_not(tmp_path, told_here):
    write_files(tmp_path/'in', 3)
    list(read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=told_here))
    write_files(tmp_path/'in', 3, **{'01.png': 'another page'})
    assert [(o['file'], o['text']) for o in read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=told_here)] == [('01.png', '12 bytes')]


def test_the_same_content_is_read_once(tmp_path, told_here):
    write_files(tmp_path/'in', 3, **{f'copy{i}.png': 'page 1' for i in range(4)})
    assert len(list(read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=told_here, at_once=10))) == 7
    assert set(begun(tmp_path).values()) == {1}


def test_another_model_reads_all_again(tmp_path, told_here):
    write_files(tmp_path/'in', 3)
    list(read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=told_here))
    assert len(list(read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=told_here, line=True))) == 3


def test_a_closed_file_goes_on_record(tmp_path, told_here, monkeypatch):
    write_files(tmp_path/'in', 2)
    read = Path.read_bytes
    def closed(path): # as chmod would, but nothing is closed to root
        if path.name == '00.png': raise PermissionError('not yours')
        return read(path)
    monkeypatch.setattr(Path, 'read_bytes', closed)
    for known in (['01.png'], []):
        found = list(read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=told_here))
        assert [o['file'] for o in found if 'error' not in o] == known
        assert found[-1] == {'file': '00.png', 'error': 'not yours'} # each time
    assert [json.loads(o).get('error') for o in (tmp_path/'r.jsonl').read_text().splitlines()] == [None, 'not yours'] # and once on record


def test_what_failed_is_tried_again(tmp_path, told_here):
    write_files(tmp_path/'in', 2)
    def poor(part, **_): return {k: {'error': 'no memory'} for k in part}
    assert [o['error'] for o in read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=poor)] == ['no memory']*2
    assert [o['text'] for o in read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=told_here)] == ['6 bytes']*2
    assert list(read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=poor)) == []


def test_an_error_of_ours_stops_the_work(tmp_path):
    def broken(part, **_): raise KeyError('ours')
    write_files(tmp_path/'in', 2)
    with pytest.raises(KeyError, match='ours'): list(read_folder(tmp_path/'in', tmp_path/'r.jsonl', read=broken))


def test_only_a_few_parts_are_handed_out_at_a_time():
    taken = []
    def parts():
        for i in range(50):
            taken.append(i)
            yield {str(i): b''}
    with ThreadPoolExecutor(1) as pool:
        found = run_batches(WorkerPool(pool, lambda: 1, ()), parts(), lambda part: {k: {} for k in part}, in_flight=3)
        next(found)
        assert len(taken) <= 3
        found.close()


@pytest.mark.parametrize(('make', 'error'), [(lambda o: o/'none', 'No folder'), (lambda o: o, 'No image')])
def test_a_folder_without_images_is_refused(tmp_path, make, error):
    with pytest.raises((FileNotFoundError, ValueError), match=error): list(read_folder(make(tmp_path), tmp_path/'r.jsonl'))


def test_an_address_without_a_port_is_refused_at_once():
    with pytest.raises(ValueError, match='with a port'), open_pool('nonsense'): pass


def test_an_absent_scheduler_is_named():
    with pytest.raises(ConnectionError, match='dask scheduler'), open_pool('tcp://127.0.0.1:9', patience_s=.2): pass


@pytest.mark.slow
def test_workers_die_and_nothing_is_lost_nor_finished_twice(tmp_path):
    "A page that kills whoever reads it, a worker that is shot, and a scheduler's address."
    from distributed import Client
    write_files(tmp_path/'in', 20, **{'zz.png': 'page of poison'})
    done, finished = [], set()
    with local_cluster(2) as cluster:
        cluster.scheduler.allowed_failures = 1
        for o in read_folder(tmp_path/'in', tmp_path/'r.jsonl', cluster.scheduler_address, read=told, began=str(tmp_path/'began'), sleep=.1,
                             poison='poison', at_once=2):
            done.append(o)
            if len(done) == 4:
                finished = {o['key'] for o in done}
                with Client(cluster, set_as_default=False) as client: psutil.Process(next(iter(client.run(os.getpid).values()))).send_signal(signal.SIGKILL)
    assert sorted(o['file'] for o in done) == sorted(o.name for o in list_images(tmp_path/'in'))
    assert [o['file'] for o in done if 'error' in o] == ['zz.png']
    assert all(begun(tmp_path)[o] == 1 for o in finished)


@pytest.mark.slow
def test_the_command_reads_a_folder_on_two_workers_and_goes_on(folder, tmp_path):
    words = ['read', str(folder), '--lines', '--record', str(tmp_path/'r.jsonl'), '--jobs', '2']
    first = CliRunner().invoke(main, words)
    assert (first.exit_code, json.loads(first.stdout.splitlines()[-1])['read']) == (0, 6)
    (folder/'bad.png').write_bytes(b'no image')
    again = CliRunner().invoke(main, words[:-2])
    assert (again.exit_code, json.loads(again.stdout.splitlines()[-1])['read']) == (1, 0)


@pytest.mark.slow
def test_ctrl_c_stops_the_command_with_one_line_and_it_goes_on(tmp_path):
    (tmp_path/'in').mkdir()
    for i in range(24): write_png(tmp_path/'in'/f'{i:02}.png', np.random.default_rng(i).integers(0, 256, (400, 300), np.uint8))
    words = [str(Path(sys.executable).with_name('mlops-course')), 'read', str(tmp_path/'in'), '--record', str(tmp_path/'r.jsonl'), '--jobs', '2']
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               env=os.environ | {'MLOPS_COURSE_PATHS__RUNS': str(tmp_path/'runs')})
    try:
        until = time.monotonic() + 120
        while not (tmp_path/'r.jsonl').exists() or not (tmp_path/'r.jsonl').stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(.02)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert 'the same command goes on' in said
    assert 'Traceback' not in said
    done = len((tmp_path/'r.jsonl').read_text().splitlines())
    rest = CliRunner().invoke(main, words[1:-2])
    assert json.loads(rest.stdout.splitlines()[-1])['read'] == 24 - done > 0


# Scaling

def test_the_fit_finds_the_law_behind_noise():
    law, rng = ScalingModel(1., .004, .1, .001, 0.), np.random.default_rng(0)
    found = fit_scaling([(n, p, law.seconds(n, p)*rng.normal(1, .01)) for n in (20, 60, 200) for p in (1, 2, 4, 8)])
    assert found.work_s == pytest.approx(.1, rel=.1)
    assert found.times(16) == pytest.approx(law.times(16), rel=.25)
    assert .002 < found.error < .1


def test_two_numbers_of_workers_tell_nothing_of_talk():
    law = ScalingModel(1., .004, .1, .001, 0.)
    assert fit_scaling([(n, p, law.seconds(n, p)) for n in (20, 60) for p in (1, 2)]).talk_s == 0


def test_times_has_amdahls_limit():
    assert ScalingModel(9., .01, .09, 0., 0.).times(1e9) == pytest.approx(10)
    assert ScalingModel(9., .01, .09, .01, 0.).times(50) < ScalingModel(9., .01, .09, .01, 0.).times(3) # more of them are slower


@pytest.mark.parametrize('measured', [[], [(1, 1, 1.)]*9, [(1, 1, 1.), (1, 2, 1.), (1, 3, 1.), (1, 4, 1.)], [(1, 1, 1.), (2, 1, 1.), (3, 1, 1.), (4, 1, 1.)]])
def test_a_fit_needs_enough_measurements(measured):
    with pytest.raises(ValueError, match='Measure more'): fit_scaling(measured)
