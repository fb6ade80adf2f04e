"Every planted fault is found by its own check, clean data passes, and nothing is lost on the way."
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from PIL import Image

from mlops_course import pictures
from mlops_course.base.files import replace_text_file
from mlops_course.base.images import write_png
from mlops_course.dataset_checks import DATA_CHECKS, CheckedFolder, check_dataset, check_images
from mlops_course.lineage import outdated_reasons, write_lineage
from mlops_course.pictures import Cutoffs, DuplicatePair, find_duplicates, hamming_distances, has_light_ink, load_grey, measure_images, pixel_difference
from mlops_course.quality_report import picture_html, quality_report
from mlops_course.reader.checks import FIGURE_GROUPS, LINE_CHECKS, UNGROUPED, LineCutoffs, check_folder, expected_aspect, label_schema
from mlops_course.reader.datasets import make_version, read_labels
from mlops_course.reader.degradations import degrade
from mlops_course.reader.feed import load_feed
from mlops_course.reader.fonts import FONTS, render_line
from mlops_course.validation import Finding, check_leaks, check_table, findings_table, split_accepted

ROWS = 240


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    "A clean version, which no test changes."
    folder = tmp_path_factory.mktemp("clean") / "v1"
    make_version("v1", folder, lines=ROWS, pages=0, seed=3, feed=load_feed())
    return folder


@pytest.fixture
def copy(clean, tmp_path):
    "A copy of it that a test may spoil."
    return shutil.copytree(clean, tmp_path / "data")


def save(folder: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(folder / "labels.csv", index=False, encoding="utf-8", lineterminator="\n")


def victims(frame: pd.DataFrame) -> list[int]:
    "Training rows with a long text, whose route has more rows."
    often = frame["route"].map(frame["route"].value_counts())
    return frame.index[(frame["split"] == "train") & (frame["text"].str.len() > 9) & (frame["route"] != "-") & (often > 2)].tolist()


def checks_of(folder: Path) -> dict[int, set[str]]:
    "Row -> the checks that named it."
    found: dict[int, set[str]] = {}
    for o in check_folder(folder).findings:
        found.setdefault(o.row, set()).add(o.check)
    return found


def paint(path: Path, image: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def append_copy(folder: Path, change) -> int:
    "A new row with the changed picture of another."
    frame = read_labels(folder / "labels.csv")
    row = victims(frame)[0]
    frame.loc[len(frame)] = {**frame.loc[row], "file": "lines/again.png"}
    paint(folder / "lines/again.png", change(load_grey(folder / frame.at[row, "file"])))
    save(folder, frame)
    return len(frame) - 1


# --- the ten faults

@pytest.mark.parametrize("nth", [0, 5, 11])
@pytest.mark.parametrize(("check", "change"), [
    ("blank", lambda image: np.full_like(image, 250)),
    ("blank", lambda image: np.zeros_like(image)),
    ("small", lambda image: cv2.resize(image, None, fx=.25, fy=.25, interpolation=cv2.INTER_AREA)),
    ("polarity", lambda image: 255 - image),
])
def test_a_spoilt_picture_is_found(copy, check, change, nth):
    frame = read_labels(copy / "labels.csv")
    row = victims(frame)[nth]
    path = copy / frame.at[row, "file"]
    paint(path, change(load_grey(path)))
    assert checks_of(copy) == {row: {check}}


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: b"<html>not found</html>", None])
def test_an_unreadable_or_missing_picture_is_found(copy, damage):
    frame = read_labels(copy / "labels.csv")
    row = victims(frame)[0]
    path = copy / frame.at[row, "file"]
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    assert checks_of(copy) == {row: {"unreadable"}}
    assert str(copy) not in check_folder(copy).findings[0].reason, "a reason names no folder of this machine"


def test_an_exact_copy_is_found(copy):
    row = append_copy(copy, lambda image: image)
    assert checks_of(copy) == {row: {"duplicate"}}


def test_an_exact_copy_in_another_file_format_is_found(copy):
    frame = read_labels(copy / "labels.csv")
    row = victims(frame)[0]
    Image.fromarray(load_grey(copy / frame.at[row, "file"])).save(copy / "lines/again.bmp")
    frame.loc[len(frame)] = {**frame.loc[row], "file": "lines/again.bmp"}
    save(copy, frame)
    assert checks_of(copy) == {len(frame) - 1: {"duplicate"}}


@pytest.mark.parametrize("change", [
    lambda image: degrade(image, "jpeg", .4),
    lambda image: degrade(image, "noise", .1),
    lambda image: degrade(image, "blur", .2),
    lambda image: (image * .8).astype(np.uint8),
    lambda image: cv2.resize(image, None, fx=.75, fy=.75, interpolation=cv2.INTER_AREA),
])
def test_a_copy_that_was_saved_again_is_found(copy, change):
    row = append_copy(copy, change)
    assert checks_of(copy) == {row: {"near-duplicate"}}


@pytest.mark.parametrize(("strange", "name"), [("о", "CYRILLIC SMALL LETTER O"), ("\u00a0", "NO-BREAK SPACE"), ("–", "EN DASH"), ("\n", "no name")])
def test_a_strange_character_is_found_and_named(copy, strange, name):
    frame = read_labels(copy / "labels.csv")
    row = victims(frame)[0]
    frame.at[row, "text"] = frame.at[row, "text"][:4] + strange + frame.at[row, "text"][5:]
    save(copy, frame)
    assert checks_of(copy) == {row: {"alphabet"}}
    assert name in check_folder(copy).findings[0].reason


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_label_is_found(copy, text):
    frame = read_labels(copy / "labels.csv")
    frame.at[7, "text"] = text
    save(copy, frame)
    assert checks_of(copy) == {7: {"empty"}}


@pytest.mark.parametrize("change", [lambda text: text[:len(text) // 2].strip(), lambda text: f"{text} {text}"])
def test_a_label_too_short_or_too_long_is_found(copy, change):
    frame = read_labels(copy / "labels.csv")
    row = next(o for o in victims(frame) if len(frame.at[o, "text"]) < 16)
    frame.at[row, "text"] = change(frame.at[row, "text"])
    save(copy, frame)
    assert checks_of(copy) == {row: {"length"}}


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_row_that_strayed_into_another_split_is_found(copy, split):
    frame = read_labels(copy / "labels.csv")
    row = victims(frame)[0]
    frame.at[row, "split"] = split
    save(copy, frame)
    assert checks_of(copy) == {row: {"leak"}}
    assert {o.reason.split()[0] for o in check_folder(copy).findings} == {"route", "font"}


def test_a_picture_in_two_splits_is_named_in_the_training_data(copy):
    frame = read_labels(copy / "labels.csv")
    row, other = victims(frame)[0], frame.index[frame["split"] == "test"][0]
    paint(copy / frame.at[row, "file"], degrade(load_grey(copy / frame.at[other, "file"]), "jpeg", .3))
    frame.at[row, "text"], frame.at[row, "font"] = frame.at[other, "text"], frame.at[row, "font"]
    save(copy, frame)
    leaks = [o for o in check_folder(copy).findings if o.check == "leak"]
    assert [(o.row, o.other) for o in leaks] == [(row, frame.at[other, "file"])]


# --- clean data

def test_clean_data_passes(clean):
    assert check_folder(clean).findings == []


@pytest.mark.slow
def test_false_alarms_on_other_clean_data_are_rare(tmp_path):
    rows = alarms = 0
    for seed in (11, 12, 13):
        make_version("v1", tmp_path / "v", lines=400, pages=0, seed=seed, feed=load_feed())
        found = check_folder(tmp_path / "v")
        rows, alarms = rows + len(found.frame), alarms + len(found.rejected)
    assert alarms / rows <= .005


@pytest.mark.slow
def test_the_second_version_has_few_false_alarms(tmp_path):
    make_version("v2", tmp_path / "v", lines=300, pages=0, seed=4, feed=load_feed())
    found = check_folder(tmp_path / "v")
    photos = found.frame["kind"] == "photo_simulated"
    assert set(found.rejected) <= set(found.frame.index[photos])
    assert len(found.rejected) / photos.sum() <= .06


def test_a_plausible_wrong_label_passes(copy):
    frame = read_labels(copy / "labels.csv")
    rows = frame.index[frame["text"].str.contains(r"\d\d:\d[0-8]$")][:20]
    frame.loc[rows, "text"] = [o[:-1] + str(int(o[-1]) + 1) for o in frame.loc[rows, "text"]]
    save(copy, frame)
    assert check_folder(copy).findings == [], "the lesson says that these cannot be found"


def test_rows_that_differ_in_one_digit_are_no_copies():
    fonts = [o for o in FONTS if not o.startswith("cm")]
    for i, font in enumerate(fonts):
        a, b = (render_line(o, font) for o in (f"Martyn St 08:1{i % 9}", f"Martyn St 08:1{i % 9 + 1}"))
        assert pixel_difference(a, b) > Cutoffs().near_pixels
        assert pixel_difference(a, degrade(a, "jpeg", .4)) < Cutoffs().near_pixels


# --- the table

@pytest.mark.parametrize(("column", "value", "check"), [
    ("split", "trian", "value"), ("kind", "photo", "value"), ("font", " ", "empty"), ("route", "", "empty"),
    ("file", "../secret.png", "path"), ("file", "/etc/passwd", "path"), ("file", "C:\\a.png", "path"), ("file", "", "empty"), ("text", None, "empty"),
])
def test_a_value_that_breaks_the_schema_is_named(clean, column, value, check):
    frame = read_labels(clean / "labels.csv")
    frame.at[5, column] = value
    assert {(o.row, o.check) for o in check_table(frame, label_schema())} == {(5, check)}


def test_a_file_listed_twice_is_named_in_both_rows(clean):
    frame = read_labels(clean / "labels.csv")
    frame.at[5, "file"] = frame.at[9, "file"]
    assert {(o.row, o.check) for o in check_table(frame, label_schema())} == {(5, "twice"), (9, "twice")}


def test_a_table_without_a_column_is_refused(clean):
    frame = read_labels(clean / "labels.csv")
    with pytest.raises(ValueError, match="no column route, split"):
        check_table(frame.drop(columns=["split", "route"]), label_schema())
    with pytest.raises(ValueError, match="read_labels"):
        check_table(frame.assign(route=110), label_schema())


def test_the_label_na_is_a_text(copy):
    frame = read_labels(copy / "labels.csv")
    paint(copy / frame.at[0, "file"], render_line("NA", frame.at[0, "font"]))
    frame.at[0, "text"] = "NA"
    save(copy, frame)
    assert check_folder(copy).findings == []


def test_a_name_that_leads_out_of_the_folder_is_never_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "load_grey", lambda path: pytest.fail(f"{path} was opened"))
    (tmp_path / "in").mkdir()
    paint(tmp_path / "secret.png", np.zeros((40, 40), np.uint8))
    assert "outside" in measure_images(tmp_path / "in", ["../secret.png"])[0].error


def test_an_own_folder_with_two_columns_can_be_checked(copy):
    frame = read_labels(copy / "labels.csv")[["file", "text"]]
    frame.at[3, "text"] = ""
    save(copy, frame)
    found = check_folder(copy, LineCutoffs(shape=(.3, 3)), label_schema().select_columns(["file", "text"]))
    assert {(o.row, o.check) for o in found.findings} == {(3, "empty")}


def test_other_images_are_checked_with_their_own_columns(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5): cv2.imwrite(str(tmp_path / f"{i}.png"), cv2.resize(rng.integers(0, 256, (8, 8), np.uint8), (64, 64)))
    shutil.copy(tmp_path / "0.png", tmp_path / "5.png")
    frame = pd.DataFrame({"file": [f"{i}.png" for i in range(6)], "finding": ["none"] * 4 + ["covid", "covid"],
                          "patient": list("aabbba"), "split": ["train"] * 4 + ["test", "train"]})
    schema = pa.DataFrameSchema({"finding": pa.Column(str, pa.Check.isin(["none", "covid"], error="value: none or covid was expected"))})
    def late(frame, measured, cutoffs): return [Finding(3, "3.png", "late", "made last")]
    checked = check_dataset(tmp_path, frame, schema, Cutoffs(), ["patient"], more=late, checks=DATA_CHECKS | {"late": "made last"}, label="finding")
    assert {(o.row, o.check) for o in checked.findings} == {(0, "duplicate"), (5, "duplicate"), (4, "leak"), (3, "late")}
    assert any("whose finding is 'covid'" in o.reason for o in checked.findings)
    frame.to_csv(tmp_path / "labels.csv", index=False)
    html = quality_report(checked, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<td>late</td>" in html
    assert "labelled <code>covid</code>" in html
    assert "alphabet" not in html


# --- small parts

def test_distances_count_bits_both_ways():
    rng = np.random.default_rng(0)
    hashes = [rng.bytes(32).hex() for _ in range(7)]
    by_hand = [[(int(a, 16) ^ int(b, 16)).bit_count() for b in hashes] for a in hashes]
    assert hamming_distances(hashes).tolist() == hamming_distances(hashes, hashes).tolist() == by_hand
    assert hamming_distances([]).shape == (0, 0)
    assert hamming_distances(hashes, []).shape == (7, 0)


@pytest.mark.slow
def test_copies_are_found_across_the_blocks(tmp_path):
    images = {"a.png": render_line("Abbott St", "DejaVuSans"), "b.png": render_line("Platform 3", "DejaVuSans")}
    for name, image in images.items():
        paint(tmp_path / name, image)
    one, two = measure_images(tmp_path, ["a.png", "b.png"])
    far = one._replace(bits="0" * 64, pixels="x")
    unlike = [far._replace(bits=f"{2 ** 255 + (2 ** 100 - 1) * (i % 2):064x}", contrast=0.) for i in range(1500)] # blank: left out
    measured = [one, two, *unlike, one]
    files = ["a.png", "b.png", *["c.png"] * 1500, "a.png"]
    assert [(o.first, o.second, o.exact) for o in find_duplicates(tmp_path, files, measured)] == [(0, len(files) - 1, True)]
    many = [two] + [one] * 1001
    assert (1, 1001, True) in {(o.first, o.second, o.exact) for o in find_duplicates(tmp_path, ["b.png"] + ["a.png"] * 1001, many)}


def test_copies_with_different_texts_are_both_named():
    frame = pd.DataFrame({"file": ["a.png", "b.png"], "text": ["08:15", "08:16"], "split": "train", "kind": "render"})
    good = pictures.ImageMeasurement("", 90, 32, 200., False, "p", "b")
    found = check_images(frame, [good, good], [DuplicatePair(0, 1, True, 0.)])
    assert [(o.row, o.other) for o in found] == [(1, "a.png"), (0, "b.png")]
    assert "'08:15'" in found[0].reason


def test_rows_without_a_route_are_no_group():
    frame = pd.DataFrame({"file": list("abc"), "split": ["train", "test", "test"], "route": "-", "font": "segments"})
    assert check_leaks(frame, FIGURE_GROUPS, shared=UNGROUPED) == []
    assert [o.row for o in check_leaks(frame.assign(route="110"), FIGURE_GROUPS, shared=UNGROUPED)] == [0]


@pytest.mark.parametrize("dark_paper", [False, True])
def test_ink_is_light_where_paper_is_dark(dark_paper):
    for font in FONTS:
        image = render_line("Gate 7", font, paper=30 if dark_paper else 240, ink=240 if dark_paper else 30)
        assert has_light_ink(image) == dark_paper


def test_no_shape_is_expected_of_what_cannot_be_drawn():
    assert np.isnan(expected_aspect("", "DejaVuSans"))
    assert np.isnan(expected_aspect("по", "DejaVuSans"))
    assert expected_aspect("Gate 7", "a font of yours") == expected_aspect("Gate 7")


# --- nothing vanishes

def spoil(copy) -> CheckedFolder:
    frame = read_labels(copy / "labels.csv")
    frame.at[3, "text"] = ""
    frame.at[4, "text"] = 'a "quoted", text\twith о'
    frame.at[5, "split"] = "trian"
    paint(copy / frame.at[4, "file"], np.full((32, 90), 255, np.uint8))
    save(copy, frame)
    return check_folder(copy)


@pytest.mark.parametrize("missing", [None, np.nan, ""])
def test_missing_values_are_equal_and_end_in_no_traceback(tmp_path, missing):
    picture = np.full((40, 120), 250, np.uint8)
    picture[8:30, 10:60] = 20
    for name in ("0.png", "1.png"): write_png(tmp_path / name, picture)
    schema = pa.DataFrameSchema({"file": pa.Column(str, nullable=True)})
    frame = pd.DataFrame({"file": ["0.png", "1.png", missing], "text": [missing] * 3, "split": [missing] * 3})
    found = [(o.row, o.check) for o in check_dataset(tmp_path, frame, schema).findings]
    assert found == [(1, "duplicate"), (2, "unreadable")]


def test_text_with_a_lone_carriage_return_stays_whole(tmp_path):
    frame = pd.DataFrame({"file": ["a", "b", "c"], "text": ["one\rcell", "x", "two\rcells"]})
    split_accepted(frame, [Finding(2, "c", "value", "odd")], tmp_path)
    pd.testing.assert_frame_equal(read_labels(tmp_path / "accepted.csv"), frame[:2])
    assert read_labels(tmp_path / "rejected.csv")["text"].tolist() == ["two\rcells"]


def test_accepted_and_rejected_are_the_whole_table(copy, tmp_path):
    checked = spoil(copy)
    accepted = split_accepted(checked.frame, checked.findings, tmp_path / "out")
    rejected = read_labels(tmp_path / "out" / "rejected.csv")
    assert sorted([*accepted.index, *rejected["row"].astype(int)]) == list(range(ROWS))
    assert {3, 4, 5} <= set(rejected["row"].astype(int)) == checked.rejected
    assert (rejected["reason"].str.strip() != "").all()
    line = rejected.set_index("row").loc["4"]
    assert line["text"] == 'a "quoted", text\twith о'
    assert set(line["check"].split(", ")) >= {"blank", "alphabet"}
    both = pd.concat([read_labels(tmp_path / "out" / "accepted.csv"), rejected[checked.frame.columns]])
    assert sorted(both["file"]) == sorted(checked.frame["file"])


def test_clean_data_leaves_an_empty_list_with_its_heading(clean, tmp_path):
    checked = check_folder(clean)
    split_accepted(checked.frame, checked.findings, tmp_path)
    rejected = read_labels(tmp_path / "rejected.csv")
    assert len(rejected) == 0
    assert {"row", "file", "text", "check", "reason"} <= set(rejected)


def test_findings_count_rows_whatever_the_index_says(tmp_path):
    frame = pd.DataFrame({"file": ["a", "b"], "text": ["x", "y"]}, index=[1, 1])
    accepted = split_accepted(frame, [Finding(1, "b", "empty", "nothing")], tmp_path)
    assert accepted["file"].tolist() == ["a"]
    assert read_labels(tmp_path / "rejected.csv")["file"].tolist() == ["b"]


def test_a_write_that_fails_leaves_the_old_file(copy, tmp_path, monkeypatch):
    out = tmp_path / "out"
    checked = spoil(copy)
    split_accepted(checked.frame, checked.findings, out)
    before = {o.name: o.read_bytes() for o in out.iterdir()}

    def broken(*_): raise OSError("No space left on device")
    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="No space"):
        split_accepted(checked.frame, [], out)
    assert {o.name: o.read_bytes() for o in out.iterdir()} == before


def test_checks_never_change_the_data(copy):
    before = {o: o.read_bytes() for o in copy.rglob("*") if o.is_file()}
    quality_report(spoil(copy), copy.parent / "report.html")
    after = {o: o.read_bytes() for o in copy.rglob("*") if o.is_file()}
    assert [o.name for o in before if before[o] != after[o]] == ["labels.csv", "render_00004.png"], "which the test itself has changed"
    assert set(before) == set(after)


# --- the report

def test_the_report_holds_its_pictures_and_asks_for_nothing(copy, tmp_path):
    frame = read_labels(copy / "labels.csv")
    frame.at[3, "text"] = "<script>alert(1)</script> & о"
    append_copy(copy, lambda image: image)
    added = read_labels(copy / "labels.csv").tail(1)
    save(copy, pd.concat([frame, added], ignore_index=True))
    html = quality_report(check_folder(copy), tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) >= 3
    assert all(o.startswith("data:image/png;base64,") for o in sources)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<script", re.sub(r"base64,[^\"]*", "", html))
    assert "&lt;script&gt;" in html
    assert "default-src 'none'" in html
    assert all(f"<td>{o}</td>" in html for o in LINE_CHECKS)
    assert html.count("alt=") == len(sources)


def test_the_report_shows_the_worst_and_counts_the_rest(copy, tmp_path):
    frame = read_labels(copy / "labels.csv")
    rows = victims(frame)[:6]
    for i, row in enumerate(rows):
        paint(copy / frame.at[row, "file"], np.full((4 + i, 80), 9, np.uint8))
    checked = check_folder(copy)
    html = quality_report(checked, tmp_path / "report.html", worst=2).read_text(encoding="utf-8")
    assert "6 found, the worst 2 shown" in html
    assert [int(o) for o in re.findall(r"(\d+) pixels high", html)] == [4, 5]


def test_the_same_data_gives_the_same_report(clean, tmp_path):
    one, two = (quality_report(check_folder(clean), tmp_path / o).read_bytes() for o in ("a.html", "b.html"))
    assert one == two
    assert str(clean.parent).encode() not in one


def test_a_picture_that_cannot_be_read_is_said_to_be_missing(copy, tmp_path):
    frame = read_labels(copy / "labels.csv")
    (copy / frame.at[0, "file"]).write_bytes(b"broken")
    assert "(no picture" in quality_report(check_folder(copy), tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_picture_outside_the_folder_is_not_in_the_report(copy, tmp_path):
    shutil.copy(copy / read_labels(copy / "labels.csv").at[0, "file"], copy.parent / "secret.png")
    (copy / "link.png").symlink_to(copy.parent / "secret.png")
    frame = read_labels(copy / "labels.csv")
    frame.loc[[0, 1], "file"] = ["../secret.png", "link.png"]
    save(copy, frame)
    checked = check_folder(copy)
    assert {0, 1} <= checked.rejected
    report = quality_report(checked, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "picture of row 0" not in report
    assert "picture of row 1\"" not in report


def test_a_long_strip_is_shown_in_the_report(tmp_path):
    cv2.imwrite(str(tmp_path / "strip.png"), np.zeros((2, 5000), np.uint8))
    assert "data:image/png" in picture_html(tmp_path, "strip.png", "a strip")


def test_a_table_that_was_filtered_is_counted_row_by_row(tmp_path):
    frame = pd.DataFrame({"file": ["a.png", "b.png"], "text": ["x", "y"], "kind": [None, "scan"]}, index=[7, 1])
    frame.to_csv(tmp_path / "labels.csv")
    checked = CheckedFolder(tmp_path, frame, [Finding(0, "a.png", "value", "unknown")], Cutoffs())
    report = quality_report(checked, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 rows: 1 accepted, 1 rejected" in report
    rows = dict(re.findall(r'<tr><td>(\w+)</td> <td class="n">1</td> <td class="n">(\d)</td></tr>', report))
    assert sorted(rows.values()) == ["0", "1"], "the row without a kind is counted, too"
    assert rows["scan"] == "0"


# --- lineage

def double(o): return 2 * o
def treble(o): return 3 * o


@pytest.fixture
def derived(tmp_path):
    "labels.csv → accepted.csv → report.html, each with its lineage."
    replace_text_file(tmp_path / "data" / "labels.csv", "file,text\na.png,x\n")
    replace_text_file(tmp_path / "data" / "lines" / "a.png", "picture")
    replace_text_file(tmp_path / "out" / "accepted.csv", "file,text\n")
    write_lineage(tmp_path / "out" / "accepted.csv", [tmp_path / "data" / "labels.csv", tmp_path / "data" / "lines"],
                  [double], {"near_bits": 24, "shape": (.7, 1.4)})
    replace_text_file(tmp_path / "out" / "report.html", "<html>")
    write_lineage(tmp_path / "out" / "report.html", [tmp_path / "out" / "accepted.csv"])
    return tmp_path


def test_what_has_not_changed_is_up_to_date(derived):
    assert outdated_reasons(derived / "out" / "accepted.csv", [double], {"near_bits": 24, "shape": (.7, 1.4)}) == []
    assert outdated_reasons(derived / "out" / "report.html", [], {}) == []


@pytest.mark.parametrize(("change", "said"), [
    (lambda o: replace_text_file(o / "data" / "labels.csv", "file,text\na.png,y\n"), "input ../data/labels.csv: was "),
    (lambda o: replace_text_file(o / "data" / "lines" / "b.png", "new"), "input ../data/lines: was "),
    (lambda o: (o / "data" / "labels.csv").unlink(), "is missing"),
    (lambda o: replace_text_file(o / "out" / "accepted.csv", "edited by hand"), "file accepted.csv: was "),
])
def test_a_changed_file_is_noticed_here_and_below(derived, change, said):
    change(derived)
    found = outdated_reasons(derived / "out" / "accepted.csv")
    assert len(found) == 1
    assert said in found[0]
    assert any(o.startswith("accepted.csv ← ") and said in o for o in outdated_reasons(derived / "out" / "report.html"))


def test_changed_code_is_noticed(derived):
    found = outdated_reasons(derived / "out" / "accepted.csv", code=[treble])
    assert [o.split(":")[0] for o in found] == ["code of double", "code of treble"]


@pytest.mark.parametrize(("parameters", "said"), [
    ({"near_bits": 20, "shape": [.7, 1.4]}, ["parameter near_bits: was 24, is 20"]),
    ({"near_bits": 24}, ["parameter shape: was [0.7, 1.4], is absent"]),
    ({"near_bits": 24, "shape": [.7, 1.4], "new": None}, []),
    ({"near_bits": 24, "shape": [.7, 1.4], "new": 1}, ["parameter new: was absent, is 1"]),
])
def test_changed_parameters_are_noticed(derived, parameters, said):
    assert outdated_reasons(derived / "out" / "accepted.csv", parameters=parameters) == said


def test_a_file_without_lineage_is_outdated(tmp_path):
    replace_text_file(tmp_path / "a.csv", "x")
    assert "no lineage" in outdated_reasons(tmp_path / "a.csv")[0]
    with pytest.raises(FileNotFoundError):
        write_lineage(tmp_path / "a.csv", [tmp_path / "not there"])


def test_lineage_moves_with_its_tree(derived, tmp_path_factory):
    moved = shutil.copytree(derived, tmp_path_factory.mktemp("moved") / "tree")
    shutil.rmtree(derived)
    assert outdated_reasons(moved / "out" / "report.html") == []


def test_findings_make_a_table():
    assert list(findings_table([]).columns) == list(Finding._fields)
    assert findings_table([Finding(1, "a.png", "blank", "white")])["check"].tolist() == ["blank"]
