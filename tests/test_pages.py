"The folder of pages: everything in it is listed, labelled, credited and whole."
import csv
import subprocess
import sys
from hashlib import sha256

import pytest

from mlops_course.base.files import find_root
from mlops_course.base.images import load_image

PAGES = find_root()/'data'/'pages'


def table(name):
    with (PAGES/name).open(encoding='utf-8', newline='') as f: return list(csv.DictReader(f))


LABELS = {o['file']: o['text'] for o in table('labels.csv')}
SOURCES = {o['file']: o for o in table('sources.csv')}
EVERY = pytest.mark.parametrize('name', sorted(SOURCES))


def test_every_file_in_the_folder_is_listed_in_both_tables():
    found = {o.name for o in PAGES.iterdir()} - {'labels.csv', 'sources.csv', 'README.md'}
    assert found == set(LABELS) == set(SOURCES)


def test_there_are_pages_of_every_kind():
    kinds = [o['kind'] for o in SOURCES.values()]
    assert {k: kinds.count(k) for k in set(kinds)} == {'render': 4, 'photo': 3, 'scan': 3}


def test_a_simulated_photograph_says_so_in_its_name_and_its_source():
    photos = [o for o in SOURCES.values() if o['kind'] == 'photo']
    assert [o['file'] for o in photos if 'simulated' not in o['file'] or 'simulation' not in o['source']] == []


def test_the_folder_stays_small():
    assert sum(o.stat().st_size for o in PAGES.iterdir()) < 600_000


@EVERY
def test_a_page_is_the_one_whose_source_is_stated(name):
    assert sha256((PAGES/name).read_bytes()).hexdigest() == SOURCES[name]['sha256']


@EVERY
def test_a_page_has_a_label_a_source_and_a_licence(name):
    assert LABELS[name].strip() == LABELS[name] != ''
    assert '' not in LABELS[name].splitlines()
    assert SOURCES[name]['source'].strip()
    assert SOURCES[name]['licence'].strip()


@EVERY
def test_a_page_loads_and_is_small(name):
    height, width, colours = load_image(PAGES/name).shape
    assert colours == 3
    assert max(height, width) <= 700


@EVERY
def test_a_label_holds_only_letters_that_the_english_engines_know(name):
    assert LABELS[name].isascii()


@EVERY
def test_the_readme_names_every_page(name):
    assert name.rpartition('_')[0] in (PAGES/'README.md').read_text(encoding='utf-8')


@pytest.mark.parametrize(('make', 'message'), [(lambda p: None, 'No file'), (lambda p: p.write_bytes(b'not the feed'), 'SHA-256')], ids=['missing', 'another'])
def test_the_page_maker_refuses_a_feed_that_is_not_the_one(make, message, tmp_path):
    feed = tmp_path/'feed.zip'
    make(feed)
    result = subprocess.run([sys.executable, find_root()/'data'/'make_pages.py', feed], capture_output=True, text=True)
    assert result.returncode == 1
    assert message in result.stderr
