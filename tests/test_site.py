"The site as a reader meets it: built once, opened in a real browser, on a wide screen, on a phone and in the dark."
import os
import re
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mlops_course.base.files import find_root
from mlops_course.tools.house import lessons, library_pages
from mlops_course.tools.overview import quizzes
from mlops_course.tools.site import build_site, render_site

pytestmark = pytest.mark.slow # they build the whole site, and open it in a browser

ROOT = find_root()
PHONE = {'width': 390, 'height': 844}
WIDE = {'width': 1400, 'height': 900}

# Text whose colour stands out too little from what is behind it, as [contrast, colour, background, text].
FAINT = '''() => {
  const ctx = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const once = f => { const known = new Map(); return x => { if (!known.has(x)) known.set(x, f(x)); return known.get(x); }; };
  const rgba = once(c => { ctx.clearRect(0, 0, 1, 1); ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1); return [...ctx.getImageData(0, 0, 1, 1).data]; });
  const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3]/255 + b[i]*(1 - a[3]/255));
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b; };
  const behind = once(e => e ? over(rgba(getComputedStyle(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255]);
  const found = {}, texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, said = texts.currentNode.data.trim();
    if (!said || !e.checkVisibility() || e.closest('script, style, noscript')) continue;
    const bg = behind(e), fg = over(rgba(getComputedStyle(e).color), bg), [a, b] = [light(fg), light(bg)].sort((x, y) => y - x);
    const contrast = (a + .05)/(b + .05);
    if (contrast < 4.5) found[`${fg} on ${bg}`] = [contrast.toFixed(2), `${fg}`, `${bg}`, said.slice(0, 40)];
  }
  return Object.values(found);
}'''


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args): pass


@pytest.fixture(scope='session')
def no_quarto():
    "These tests are about smalldocs' pages, also on a machine that has Quarto."
    with pytest.MonkeyPatch.context() as patch:
        find = shutil.which
        patch.setattr(shutil, 'which', lambda name, *args, **more: None if name == 'quarto' else find(name, *args, **more))
        yield


@pytest.fixture(scope='session')
def site(tmp_path_factory, no_quarto): return build_site(ROOT, tmp_path_factory.mktemp('site')/'_site')


@pytest.fixture(scope='session')
def host(site):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def tab(browser):
    opened = browser.new_page(viewport=WIDE, color_scheme='light')
    opened.set_default_timeout(10_000)
    yield opened
    opened.close()


@pytest.fixture(scope='module')
def visits(site, host, browser):
    "What happens when each page is opened on a phone; of the reference, whose pages look alike, the dark is tried on each sixth."
    found = {}
    opened = browser.new_page(viewport=PHONE, color_scheme='light', reduced_motion='reduce')
    requests, errors = [], []
    opened.on('request', lambda o: requests.append(o.url))
    opened.on('console', lambda o: errors.append(o.text) if o.type == 'error' else None)
    opened.on('pageerror', lambda o: errors.append(str(o)))
    light_only = {o for i, o in enumerate(sorted((site/'api').glob('*.html'))) if i%6}
    for path in sorted(site.rglob('*.html')):
        name = path.relative_to(site).as_posix()
        opened.goto(f'{host}/{name}')
        found[name] = {
            'requests': requests[:], 'errors': errors[:], 'faint': opened.evaluate(FAINT),
            'sideways': opened.evaluate('() => { scrollTo(500, 0); return scrollX; }'),
            'mute': opened.evaluate('() => [...document.images].filter(o => !o.alt.trim()).map(o => o.src.slice(0, 60))')}
        found[name]['faint in the dark'] = []
        if path not in light_only:
            opened.emulate_media(color_scheme='dark')
            settle(opened)
            found[name]['faint in the dark'] = opened.evaluate(FAINT)
            opened.emulate_media(color_scheme='light')
        requests.clear()
        errors.clear()
    opened.close()
    return found


def settle(tab):
    "Wait until the page is dark and nothing on it is fading any more."
    tab.wait_for_function("document.documentElement.classList.contains('quarto-dark') && !document.getAnimations().length")


def of_each(visits, key): return {name: o[key] for name, o in visits.items() if o[key]}


def test_every_lesson_has_its_pages(site):
    for o in lessons(ROOT/'nbs'):
        assert (site/'nbs'/f'{o.name}.html').is_file()
        assert o.question.replace("'", '’') in (site/'learning_path.html').read_text(encoding='utf-8') # set as in print
    for o in lessons(ROOT/'exercises'): assert (site/'exercises'/f'{o.name}.html').is_file()
    for o in library_pages(): assert (site/'nbs'/f'{o.name}.html').is_file()
    for name in ('index.html', 'quiz.html', 'nbs/glossary.html', 'api/index.html'): assert (site/name).is_file()


def test_every_stored_quiz_stands_on_the_quiz_page(site):
    assert (site/'quiz.html').read_text(encoding='utf-8').count("class='quiz'") == sum(len(quizzes(o)) for o in lessons(ROOT/'nbs')) > 0


def test_no_page_scrolls_sideways_on_a_phone(visits): assert not of_each(visits, 'sideways')


def test_no_page_has_console_errors(visits): assert not of_each(visits, 'errors')


def test_no_page_asks_another_machine(visits, host):
    assert not {name: far for name, o in visits.items() if (far := [r for r in o['requests'] if not r.startswith((host, 'data:'))])}


def test_every_picture_has_a_text(visits): assert not of_each(visits, 'mute')


def test_every_text_is_readable(visits): assert not of_each(visits, 'faint')


def test_every_text_is_readable_in_the_dark(visits): assert not of_each(visits, 'faint in the dark')


def test_dark_mode_is_a_click_and_stays(tab, host):
    tab.goto(f'{host}/nbs/{lessons(ROOT/"nbs")[0].name}.html')
    before = tab.evaluate('getComputedStyle(document.body).backgroundColor')
    tab.locator('.quarto-color-scheme-toggle').first.click()
    settle(tab)
    assert tab.evaluate('getComputedStyle(document.body).backgroundColor') != before
    assert tab.evaluate(FAINT) == []
    tab.goto(f'{host}/learning_path.html')
    settle(tab)


def search(tab, word):
    box = tab.locator('.smalldocs-search input:visible').first
    box.click()
    box.press_sequentially(word)
    tab.locator('.search-result').first.wait_for()
    return [o.get_attribute('href') for o in tab.locator('.search-result').all()]


def test_search_finds_a_lesson(tab, host):
    tab.goto(f'{host}/learning_path.html')
    hits = search(tab, 'ocr')
    assert any('nbs/02_ocr.html' in o for o in hits), hits
    tab.locator('.search-result[href*="nbs/02_ocr.html"]').first.click()
    tab.wait_for_url('**/nbs/02_ocr.html*')


def test_site_opens_as_files(tab, site):
    errors = []
    tab.on('console', lambda o: errors.append(o.text) if o.type == 'error' else None)
    tab.goto((site/'index.html').as_uri())
    assert any('nbs/02_ocr.html' in o for o in search(tab, 'ocr'))
    assert not errors


def test_download_link_delivers_the_notebook(tab, host):
    lesson = lessons(ROOT/'nbs')[1]
    tab.goto(f'{host}/nbs/{lesson.name}.html')
    with tab.expect_download() as saved: tab.get_by_role('link', name='Download the notebook').first.click()
    assert saved.value.suggested_filename == lesson.path.name
    assert Path(saved.value.path()).read_bytes() == lesson.path.read_bytes()


def test_quiz_option_opens_and_says_whether_it_holds(tab, host):
    tab.goto(f'{host}/quiz.html')
    option = tab.locator('.quiz details').first
    verdict = option.locator('div b').first
    assert not verdict.is_visible()
    option.locator('summary').click()
    assert verdict.inner_text() in ('Right.', 'No.')


def test_lesson_leads_to_its_exercise_and_back(tab, host):
    name = lessons(ROOT/'exercises')[0].name
    tab.goto(f'{host}/nbs/{name}.html')
    tab.locator('.about').get_by_role('link', name='Exercise').click()
    tab.wait_for_url(f'**/exercises/{name}.html')
    tab.locator('.about').get_by_role('link', name='The lesson').click()
    tab.wait_for_url(f'**/nbs/{name}.html')


def test_reference_leads_to_the_cell_that_explains(tab, host):
    tab.goto(f'{host}/api/scoring.html')
    tab.get_by_role('link', name='explained in its lesson').first.click()
    tab.wait_for_url('**/nbs/03_scoring.html#code-*')
    assert tab.locator(f'[id="{tab.url.partition("#")[2]}"]').count() == 1


def test_reference_leads_to_the_page_of_the_library_that_explains(tab, host):
    tab.goto(f'{host}/api/mlops_course.reader.net.html')
    tab.get_by_role('link', name='explained on its page').first.click()
    tab.wait_for_url('**/nbs/library/net.html#code-*')
    assert tab.locator(f'[id="{tab.url.partition("#")[2]}"]').count() == 1


def test_library_is_apart_from_the_lessons_and_the_reference(tab, host):
    tab.goto(f'{host}/nbs/library/index.html')
    sections = tab.locator('#quarto-sidebar .sidebar-item-section').all_inner_texts()
    assert any('Library' in o for o in sections)
    assert tab.locator('#quarto-sidebar a[href$="library/net.html"], #quarto-sidebar a[href$="net.html"]').count() >= 1
    tab.get_by_role('link', name='The network').first.click()
    tab.wait_for_url('**/nbs/library/net.html')


def test_learning_path_and_lessons_say_what_time_a_person_needs(site):
    text = (site/'learning_path.html').read_text(encoding='utf-8')
    assert len(re.findall(r'About \d+ minutes \(reading \d+, code \d+', text)) == len(lessons(ROOT/'nbs'))
    assert re.search(r'A person needs about <strong>[\d.]+ h</strong>', text)
    assert '200 words of prose' in text
    for o in lessons(ROOT/'nbs'):
        page = (site/'nbs'/f'{o.name}.html').read_text(encoding='utf-8')
        assert re.search(r'About \d+ minutes \(reading \d+, code \d+', page), o.name


def test_phone_opens_the_menu(tab, host):
    tab.set_viewport_size(PHONE)
    tab.goto(f'{host}/index.html')
    tab.locator('.quarto-btn-toggle:visible').first.click()
    tab.locator('#quarto-sidebar.show').get_by_role('link', name='Glossary').click()
    tab.wait_for_url('**/nbs/glossary.html')


def test_broken_link_stops_the_build_and_leaves_the_old_site(tmp_path, no_quarto):
    copy = tmp_path/'a course'
    (copy/'nbs').mkdir(parents=True)
    for name in ('settings.ini', '_quarto.yml', 'requirements.lock'): shutil.copy(ROOT/name, copy/name)
    for path in (ROOT/'nbs').glob('*.*'):
        if path.is_file() and not re.match(r'\d\d_', path.name): shutil.copy(path, copy/'nbs'/path.name)
    with (copy/'nbs'/'glossary.qmd').open('a', encoding='utf-8') as f: f.write('\n[away](nowhere.html) [beside](#not-here)\n')
    old = copy/'_site'/'site_libs'/'old.txt'
    old.parent.mkdir(parents=True)
    old.touch()
    with pytest.raises(ValueError) as stopped: build_site(copy)
    assert 'nbs/glossary.html -> nowhere.html: nothing is there' in str(stopped.value)
    assert 'nbs/glossary.html -> #not-here: nothing is there' in str(stopped.value)
    assert old.exists()
    assert not list(copy.glob('.site-*'))


def test_a_page_that_cannot_be_read_is_named(tmp_path, no_quarto):
    (tmp_path/'_quarto.yml').write_text('project: {type: website}\n', encoding='utf-8')
    (tmp_path/'bad.qmd').write_text('---\ntitle: [unclosed\n---\n', encoding='utf-8')
    with pytest.raises(ValueError, match=r'bad\.qmd'): render_site(tmp_path)


@pytest.mark.skipif(os.name == 'nt', reason="the stand-in for Quarto is a shell script")
def test_quarto_is_used_where_it_is_installed(tmp_path, monkeypatch):
    (tmp_path/'quarto').write_text('#!/bin/sh\nmkdir -p "$2/_site"\necho "$@" > "$2/_site/said"\n', encoding='utf-8')
    (tmp_path/'quarto').chmod(0o755)
    monkeypatch.setattr(shutil, 'which', lambda name: str(tmp_path/name))
    assert (render_site(tmp_path)/'said').read_text(encoding='utf-8').split() == ['render', str(tmp_path)]
    (tmp_path/'quarto').write_text('#!/bin/sh\necho "no such theme" >&2\nexit 1\n', encoding='utf-8')
    with pytest.raises(ValueError, match='no such theme'): render_site(tmp_path)


def test_a_folder_that_is_no_site_is_not_replaced(tmp_path):
    (tmp_path/'thesis.txt').touch()
    with pytest.raises(FileExistsError, match='will not be replaced'): build_site(ROOT, tmp_path)
    assert (tmp_path/'thesis.txt').exists()
