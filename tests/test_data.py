"Drawn data, its truth, splits, versions and a user's own folder (lesson 04), across files and processes."
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from mlops_course.base.environment import fingerprint
from mlops_course.reader.datasets import load_folder, make_version
from mlops_course.reader.degradations import DEGRADATIONS, degrade
from mlops_course.reader.feed import FEED, check_feed, fetch_feed, load_feed
from mlops_course.reader.fonts import DISPLAY_FONT, FONTS, SEGMENTS, draw_glyph, draw_segment_glyph, drawable_characters, font_family, render_line
from mlops_course.reader.lines import line_batch
from mlops_course.reader.pages import photograph, render_page
from mlops_course.reader.recognition import ALPHABET
from mlops_course.reader.sources import split_sources
from mlops_course.splitting import SPLIT_SHARES, split_by


@pytest.fixture(scope="module")
def feed():
    return load_feed()


def digest(batch):
    return fingerprint(*(o for pair in batch for o in pair))


# The feed

def test_another_feed_is_refused(tmp_path):
    (tmp_path / FEED).write_bytes(b"PK not the feed")
    with pytest.raises(ValueError, match=r"not used. Delete it"): check_feed(tmp_path / FEED)
    with pytest.raises(ValueError, match=r"not used. Delete it"): fetch_feed(tmp_path)
    with pytest.raises(ValueError, match=r"not used. Delete it"): load_feed(tmp_path / FEED)


def test_missing_feed_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="make env"): load_feed(tmp_path / FEED)


def test_feed_without_a_network_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PIP_"): monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(ConnectionError, match=r"gtfs-kit==13.0.1.*call this again"): fetch_feed(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_archive_with_another_checksum_is_refused_by_pip(tmp_path, monkeypatch):
    import tarfile
    (tmp_path / "index").mkdir()
    with tarfile.open(tmp_path / "index" / "gtfs_kit-13.0.1.tar.gz", "w:gz") as archive:
        setup = tmp_path / "setup.py"
        setup.write_text("open('ran', 'w').close()\n", encoding="utf-8")
        archive.add(setup, "gtfs_kit-13.0.1/setup.py")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(ConnectionError, match="Expected sha256"): fetch_feed(tmp_path / "feed")
    assert list((tmp_path / "feed").iterdir()) == []


def test_feed_that_is_there_needs_no_network(feed, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *o, **k: pytest.fail("pip was called"))
    assert fetch_feed().name == FEED


def test_feed_has_plain_times_and_stops(feed):
    assert (len(feed.stops), len(feed.routes), len(feed.trips)) == (398, 22, 1339)
    times = {time for trip in feed.trips for _, time in trip.calls}
    assert all(len(o) == 5 and o < "24:00" for o in times)
    assert set("".join(feed.stops)) <= set(ALPHABET)


# Lines

@pytest.mark.parametrize("version", ["v1", "v2"])
def test_same_seed_same_bytes_and_other_seed_other_bytes(version):
    assert digest(line_batch(40, 3, version)) == digest(line_batch(40, 3, version))
    assert digest(line_batch(40, 3, version)) != digest(line_batch(40, 4, version))
    assert digest(line_batch(40, 3, version)) != digest(line_batch(40, 3, version, "test"))


@pytest.mark.slow
def test_same_seed_same_bytes_in_another_process():
    code = ("from mlops_course.reader.lines import line_batch; from mlops_course.base.environment import fingerprint\n"
            "print(fingerprint(*(o for pair in line_batch(30, 5, 'v2') for o in pair)))")
    env = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", env=env, check=True)
    assert done.stdout.strip() == digest(line_batch(30, 5, "v2"))


def test_batch_leaves_global_chance_alone():
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    line_batch(20, 0, "v2")
    assert np.random.random() == expected


def test_lines_are_32_high_with_text_of_the_alphabet():
    for image, text in line_batch(300, 1, "v2"):
        assert image.dtype == np.uint8
        assert image.shape[0] == 32
        assert image.shape[1] >= 8
        assert text == " ".join(text.split()) != ""
        assert set(text) <= set(ALPHABET)
        assert len(text) <= 30


def test_lines_of_v1_are_dark_on_light_and_v2_has_displays():
    assert all(np.median(image) > 200 for image, _ in line_batch(100, 2, "v1"))
    assert any(np.median(image) < 60 for image, _ in line_batch(100, 2, "v2"))


@pytest.mark.parametrize("font", FONTS)
def test_fonts_draw_every_character_as_itself(font):
    "No two characters of a font look the same, and none is the sign for a missing one."
    shapes = {o: draw_glyph(FONTS[font], 40, o)[0] for o in drawable_characters(font) - {" "}}
    missing = draw_glyph(FONTS[font], 40, "\uffff")[0].tobytes()
    seen = {}
    for char, shape in shapes.items():
        key = shape.tobytes(), draw_glyph(FONTS[font], 40, char)[2]
        assert key not in seen, f"{char} looks like {seen[key]}"
        assert shape.tobytes() != missing
        seen[key] = char


def test_display_shows_each_character_differently():
    shapes = {o: draw_segment_glyph(40, o)[0] for o in SEGMENTS if o not in " "}
    assert len({(o.shape, o.tobytes()) for o in shapes.values()}) == len(shapes)
    assert set("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ:.-/()") <= set(SEGMENTS)


@pytest.mark.parametrize(("text", "font", "says"), [
    ("", "DejaVuSans", "Drop empty lines"), ("A<B", "cmr10", "would be wrong"), ("é", "DejaVuSans", "cannot draw"),
    ("lower", DISPLAY_FONT, "another font"), ("█", DISPLAY_FONT, "another font"), ("A", "Dejavu", "The fonts are")])
def test_line_that_cannot_be_drawn_is_refused(text, font, says):
    with pytest.raises(ValueError, match=says): render_line(text, font)


def test_line_has_its_margin_and_greys():
    image = render_line("Gate 7", size=30, margin=6, ink=20, paper=240)
    assert image[:6].min() == image[:, -6:].min() == 240
    assert image.min() == 20
    assert (image[6] < 240).any()
    assert (image[:, 6] < 240).any()


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match="v1, v2"): line_batch(1, 0, "v3")
    with pytest.raises(ValueError, match="train, valid, test"): line_batch(1, 0, split="validation")
    with pytest.raises(ValueError, match="seed is -1"): line_batch(1, -1)


# Degradations

def picture(colour):
    image = render_line("Platform 3 08:47", size=30, margin=8)
    return np.dstack([image, image, image // 2 + 100]) if colour else image


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_degradation_keeps_shape_and_grows_with_strength(kind, colour):
    image = picture(colour)
    kept = image.copy()
    off = []
    for strength in (0, .5, 1):
        found = degrade(image, kind, strength, seed=4)
        assert found.dtype == np.uint8
        assert found.shape == image.shape
        off.append(abs(found.astype(int) - image).mean())
    assert (image == kept).all()
    assert off[0] < (5 if colour and kind == "jpeg" else 2) # a JPEG halves the colours' resolution at any quality
    assert off[1] > off[0] + .2
    assert off[2] > off[0] + 1


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_degradation_works_on_any_size(kind):
    for shape in ((8, 8), (32, 600), (400, 300), (9, 1000, 3)):
        for seed in range(3): assert degrade(np.full(shape, 200, np.uint8), kind, 1, seed).shape == shape


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_degradation_repeats_with_its_seed(kind):
    assert (degrade(picture(False), kind, .8, 3) == degrade(picture(False), kind, .8, 3)).all()


def test_thirteen_degradations():
    assert list(DEGRADATIONS) == ["blur", "noise", "jpeg", "light", "perspective", "rotation", "contrast", "shadow", "fold", "halftone", "thermal", "inverted",
                                  "seven_segment"]


@pytest.mark.parametrize(("kind", "strength", "says"), [("blurr", .5, "blur"), ("blur", 1.1, "from 0 to 1"),
    ("blur", -.1, "from 0 to 1"), ("blur", float("nan"), "from 0 to 1")])
def test_wrong_degradation_is_refused(kind, strength, says):
    with pytest.raises(ValueError, match=says): degrade(picture(False), kind, strength)
    with pytest.raises(ValueError, match=r"uint8"): degrade(picture(False).astype(float), "blur", .5)


# Pages

def ink_share(page, line):
    "The share of ink just inside the box of `line`."
    (x0, y0), (x1, y1) = np.min(line.box, 0), np.max(line.box, 0)
    part = page.image[y0:y1 + 1, x0:x1 + 1].astype(int)
    return (abs(part - np.median(part)) > 60).mean()


@pytest.mark.parametrize("split", SPLIT_SHARES)
def test_pages_have_boxes_around_their_ink(feed, split):
    for seed in range(8):
        page = render_page(feed, seed, split)
        height, width = page.image.shape
        for line in page.lines:
            assert all(type(x) is int and 0 <= x < width and type(y) is int and 0 <= y < height for x, y in line.box)
            assert ink_share(page, line) > .04
        clean = page.image.copy()
        for line in page.lines: cv2.fillPoly(clean, [np.array(line.box)], int(np.median(page.image[-3:])))
        below = clean[int(page.lines[2].box[0][1]) - 2:]
        plain = [row for row in below if len(set(row.tolist())) == 1 or (row == 130).sum() > .8*width] # paper, or a rule
        assert len(plain) > .97*len(below), "ink stands outside all boxes"


@pytest.mark.parametrize("split", SPLIT_SHARES)
def test_rows_are_the_drawn_text(feed, split):
    for seed in range(8):
        page = render_page(feed, seed, split)
        assert [[o.text for o in page.lines if o.row == r] for r in range(len(page.rows))] == page.rows
        assert page.text.splitlines() == [" ".join(o) for o in page.rows]
        assert page.rows[0][0] == f"Route {page.route}"
        trips = [dict(o.calls) for o in feed.trips if o.route == page.route]
        for stop, *times in page.rows[1:]: assert all(any(o.get(stop) == t for o in trips) for t in times)


def test_boxes_move_with_a_photographed_page(feed):
    for seed in range(6):
        page = render_page(feed, seed)
        photo = photograph(page, seed, strength=.5)
        assert photo.kind == "photo_simulated"
        assert photo.rows == page.rows
        assert photo.image.shape == page.image.shape
        assert all(0 <= x < page.image.shape[1] and 0 <= y < page.image.shape[0] for o in photo.lines for x, y in o.box)
    blank = page.image*0 + 255
    line = page.lines[5]
    (x0, y0), (x1, y1) = line.box[0], line.box[2]
    blank[y0:y1, x0:x1] = 0 # only this box has ink
    photo = photograph(replace(page, image=blank), 3, strength=.3)
    mask = np.zeros_like(blank)
    cv2.fillPoly(mask, [np.array(photo.lines[5].box)], 255)
    assert photo.image[mask > 0].mean() < photo.image[mask == 0].mean() - 50


def test_pages_differ_by_seed_and_repeat(feed):
    assert (render_page(feed, 1).image.tobytes() == render_page(feed, 1).image.tobytes())
    assert len({render_page(feed, o).text for o in range(6)}) > 3


# Splits

@pytest.mark.slow
def test_no_group_stands_in_two_splits():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(3, 120))
        groups = [f"g{o}" for o in rng.integers(0, int(rng.integers(3, 40)), n)]
        if len(set(groups)) < 3: continue
        seed = int(rng.integers(1000))
        split = split_by(groups, seed)
        assert pd.crosstab(pd.Series(groups), split).gt(0).sum(axis=1).max() == 1
        assert set(split) == set(SPLIT_SHARES)
        assert split.tolist() == split_by(groups, seed).tolist()


def test_shares_are_met_where_groups_are_small():
    share = split_by(np.arange(4000) // 2, 1).value_counts(normalize=True)
    assert all(abs(share[o] - wanted) < .01 for o, wanted in SPLIT_SHARES.items())


def test_split_does_not_depend_on_the_order_of_rows():
    groups = pd.Series([f"g{i % 17}" for i in range(200)])
    mixed = groups.sample(frac=1, random_state=3)
    assert dict(zip(groups, split_by(groups, 5))) == dict(zip(mixed, split_by(mixed, 5)))
    assert split_by(mixed, 5).index.equals(mixed.index)


def test_split_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="something finer"): split_by(["a", "b", "b"])
    with pytest.raises(ValueError, match="belong to no group"): split_by(["a", None, "b", "c"])


def test_splits_share_no_line_trip_stop_or_family(feed):
    for seed in range(5):
        found = list(split_sources(feed, seed=seed).values())
        for i, one in enumerate(found):
            assert one.trips
            assert one.fonts
            for other in found[i + 1:]:
                assert not {o.line for o in one.trips} & {o.line for o in other.trips}
                assert not {s for o in one.trips for s, _ in o.calls} & {s for o in other.trips for s, _ in o.calls}
                assert not {font_family(o) for o in one.fonts} & {font_family(o) for o in other.fonts}


def test_sisters_of_a_font_are_one_family():
    assert len({font_family(o) for o in FONTS}) == 7
    assert font_family("STIXGeneralBolIta") == font_family("STIXGeneral")
    assert font_family("DejaVuSansMono-Bold") == "DejaVuSansMono"
    assert font_family("cmb10") == "cmr10"


# Versions

def content(folder):
    return {o.relative_to(folder).as_posix(): o.read_bytes() for o in folder.rglob("*") if o.is_file()}


def test_same_arguments_same_version_and_v2_holds_v1(tmp_path):
    one = make_version("v1", tmp_path / "one", 30, 3, seed=2)
    make_version("v1", tmp_path / "two", 30, 3, seed=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    make_version("v1", tmp_path / "two", 30, 3, seed=3)
    assert content(tmp_path / "one") != content(tmp_path / "two")
    two = make_version("v2", tmp_path / "two", 30, 3, seed=2)
    images = {k: v for k, v in content(tmp_path / "one").items() if k.endswith(".png")}
    assert images.items() <= content(tmp_path / "two").items()
    assert two[two.kind == "render"].equals(one)


def test_version_is_what_it_says(tmp_path):
    labels = make_version("v2", tmp_path / "v2", 40, 6)
    assert list(labels) == ["file", "text", "kind", "font", "route", "split"]
    assert labels.kind.value_counts().to_dict() == {"render": 40, "photo_simulated": 20, "display": 10}
    assert all("simulated" in o.file for o in labels[labels.kind.str.startswith("photo")].itertuples())
    read = load_folder(tmp_path / "v2")
    assert read[list(labels)].equals(labels)
    for line in labels.itertuples(): assert cv2.imread(str(tmp_path / "v2" / line.file), cv2.IMREAD_GRAYSCALE).shape[0] == 32
    pages = json.loads((tmp_path / "v2" / "pages.json").read_text(encoding="utf-8"))
    assert len(pages) == 9
    assert {o["split"] for o in pages} == set(SPLIT_SHARES)
    assert all((tmp_path / "v2" / o["file"]).is_file() for o in pages)
    source = json.loads((tmp_path / "v2" / "source.json").read_text(encoding="utf-8"))
    assert (source["version"], source["lines"], source["pages"], source["seed"]) == ("v2", 40, 6, 0)
    assert len(source["feed"]) == 64


def test_version_has_no_leaks(tmp_path):
    labels = make_version("v2", tmp_path / "v2", 200, 0)
    drawn = labels[labels.kind != "display"]
    real = labels[labels.route != "-"]
    assert drawn.assign(family=drawn.font.map(font_family)).groupby("family").split.nunique().max() == 1
    assert real.assign(line=real.route.str.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")).groupby("line").split.nunique().max() == 1


def test_more_lines_change_none_of_the_others(tmp_path):
    few, many = (make_version("v1", tmp_path / str(n), n, 0) for n in (20, 40))
    same = few.merge(many, on=["file", "split"], suffixes=("", "_many"))
    assert len(same) > 10
    assert (same.text == same.text_many).all()


def test_version_that_fails_midway_leaves_the_old_one(tmp_path, monkeypatch):
    make_version("v1", tmp_path / "v", 20, 2)
    before = content(tmp_path / "v")
    def full(*o): raise OSError(28, "No space left on device")
    monkeypatch.setattr("mlops_course.reader.datasets.write_json", full) # the very last step
    with pytest.raises(OSError, match=r"No space"): make_version("v2", tmp_path / "v", 20, 2)
    assert content(tmp_path / "v") == before
    assert [o.name for o in tmp_path.iterdir()] == ["v"]


@pytest.mark.slow
def test_version_that_is_killed_leaves_the_old_one(tmp_path):
    make_version("v1", tmp_path / "v", 20, 2)
    before = content(tmp_path / "v")
    code = f"from mlops_course.reader.datasets import make_version; print('ready', flush=True); make_version('v2', {str(tmp_path / 'v')!r}, 100000, 2)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".v.new-*/lines/*")) and time.monotonic() < deadline: time.sleep(.05)
        process.kill()
    assert content(tmp_path / "v") == before
    make_version("v1", tmp_path / "v", 20, 2)
    assert content(tmp_path / "v") == before


def test_version_killed_between_two_renames_comes_back(tmp_path):
    make_version("v1", tmp_path / "v", 20, 0)
    before = content(tmp_path / "v")
    (tmp_path / "v").rename(tmp_path / ".v.old")
    with pytest.raises(OSError, match=r"."): make_version("v2", tmp_path / "v", 20, 0, fonts=dict.fromkeys(FONTS, Path("gone.ttf")))
    assert content(tmp_path / "v") == before


def test_version_never_replaces_what_is_not_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"thesis.txt"): make_version("v1", tmp_path, 20, 0)
    with pytest.raises(ValueError, match="at least 1 line"): make_version("v1", tmp_path / "new", 0, 0)
    with pytest.raises(ValueError, match="v1, v2"): make_version("v9", tmp_path / "new")
    assert [o.name for o in tmp_path.iterdir()] == ["thesis.txt"]


def test_version_is_silent_where_nobody_watches(tmp_path, capfd):
    make_version("v1", tmp_path / "v", 20, 1)
    assert capfd.readouterr() == ("", "")


# A user's own folder

@pytest.fixture
def own(tmp_path):
    for name in ("a.png", "b.png"): (tmp_path / name).write_bytes(b"any")
    return tmp_path


FINE = "file,text\na.png,Café 1\nb.png,\"Gate 7, left\"\n"


WIDE = "file,text,who\na.png,Café 1,me\nb.png,\"Gate 7, left\",you\n"


@pytest.mark.parametrize("raw", [FINE.encode(), FINE.encode("utf-8-sig"), FINE.replace("\n", "\r\n").encode(), WIDE.encode()])
def test_own_folder_is_read(own, raw):
    (own / "labels.csv").write_bytes(raw)
    found = load_folder(own)
    assert found.text.tolist() == ["Café 1", "Gate 7, left"]
    assert found.path.tolist() == [own / "a.png", own / "b.png"]


def test_own_text_that_looks_like_a_gap_or_number_stays_text(own):
    (own / "labels.csv").write_text("file,text\na.png,NA\nb.png,007\n", encoding="utf-8")
    assert load_folder(own).text.tolist() == ["NA", "007"]


@pytest.mark.parametrize(("raw", "says"), [
    (FINE.encode("utf-16"), "UTF-16"), (FINE.encode("utf-16-le"), "UTF-16"), (FINE.encode("latin-1"), "line 2 holds the byte 0xe9, which is 'é'"),
    (b"", "no column file and no column text"), (b"file,text\n", "lists no images"), (b"image,label\na.png,x\n", "it has image, label"),
    (b"file;text\na.png;x\n", "with a comma"),
    (b"file,text\na.png,x,y\n", "in quotes"), (b"file,text\na.png\n", "in quotes"), (b'file,text\na.png,"x\n', "not closed"),
    (b"file,text\na.png,x\na.png,y\n", "more than once, such as a.png"),
    (b"file,text\na.png, \n", "no text for 1 files"),
    (b"file,text\n../a.png,x\n", "inside"), (b"file,text\n/etc/hostname,x\n", "inside"),
    (b"file,text\n,x\n", "inside"), (b"file,file,text\na.png,a.png,x\n", "twice")])
def test_own_folder_with_a_fault_is_refused(own, raw, says):
    (own / "labels.csv").write_bytes(raw)
    with pytest.raises(ValueError, match=says): load_folder(own)


def test_own_folder_with_missing_files_is_refused(own):
    with pytest.raises(FileNotFoundError, match=r"No labels.csv"): load_folder(own)
    with pytest.raises(FileNotFoundError, match="No folder"): load_folder(own / "nowhere")
    (own / "labels.csv").write_text("file,text\na.png,x\nbb.png,y\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"1 files that are not .* such as bb.png. Closest: b.png"): load_folder(own)


def test_importing_does_nothing_visible(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import mlops_course.reader.datasets"], capture_output=True, text=True,
                          encoding="utf-8", cwd=tmp_path, check=True)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("", "", [])
