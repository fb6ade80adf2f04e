"Scores keep what the lesson claims of them, for texts and counts that nobody chose by hand."
import json
import re
import unicodedata
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops_course.base.stats import latency, min_calls, percentile_bootstrap
from mlops_course.scoring import (
    METRICS,
    by_slice,
    cer,
    compare,
    counts,
    edits_per_part,
    exact,
    interval,
    normalise,
    pieces,
    rate,
    score,
    score_lines,
    score_table,
    show_edits,
    wer,
)

DATA = Path(__file__).resolve().parents[1] / "data"
LETTERS = [*"abAB01:.é \n\t", "e\u0301", "\u00a0", "ß", "İ"]


def texts(n: int, seed: int = 0, longest: int = 30) -> list[str]:
    "Made-up texts, each with at least one letter that is no white space."
    generator = np.random.default_rng(seed)
    return ["x" + "".join(generator.choice(LETTERS, generator.integers(longest))) for _ in range(n)]


def made_up(n: int, generator: np.random.Generator, error_rate: float = .05) -> pd.DataFrame:
    "Counts of `n` made-up items whose true CER is `error_rate`."
    chars = generator.integers(20, 60, n)
    edits = generator.binomial(chars, generator.beta(1, 1 / error_rate - 1, n))
    words = chars // 5
    return pd.DataFrame({"item": [f"{i:04}" for i in range(n)], "edits": edits, "chars": chars, "word_edits": np.minimum(edits, words), "words": words,
                         "exact": edits == 0})


# --- one text against another

def test_a_text_has_no_edits_against_itself():
    for text in texts(50):
        assert (cer(text, text), wer(text, text), exact(text, text)) == (0, 0, True)


def test_edits_are_the_same_in_both_directions():
    for a, b in zip(texts(50), texts(50, seed=1)):
        assert cer(a, b) * len(normalise(b)) == pytest.approx(cer(b, a) * len(normalise(a)))


def test_edits_never_take_a_detour():
    for a, b, c in zip(texts(50), texts(50, seed=1), texts(50, seed=2)):
        def edits(pred, truth): return round(cer(pred, truth) * len(normalise(truth)))
        assert edits(a, c) <= edits(a, b) + edits(b, c)


@pytest.mark.parametrize(("pred", "truth", "characters", "words"), [
    ("Total: 1O.00", "Total: 10.00", 1 / 12, 1 / 2),
    ("", "gate 7", 1, 1),
    ("gate", "gate 7", 2 / 6, 1 / 2),
    ("ga te 7", "gate 7", 1 / 6, 1),
    ("kitten", "sitting", 3 / 7, 1),
    ("to to to", "to", 3, 2),
])
def test_known_rates(pred, truth, characters, words):
    assert cer(pred, truth) == pytest.approx(characters)
    assert wer(pred, truth) == pytest.approx(words)


def test_normalise_twice_changes_nothing_more():
    for text in [*texts(100), "ǰ ΐ ﬃ", "\u0345\u0301a"]:
        for fold in (False, True):
            assert normalise(normalise(text, fold), fold) == normalise(text, fold)


def test_normalise_keeps_the_case_unless_asked():
    assert normalise("Gate\u00a0 A\r\n7 ") == "Gate A 7"
    assert normalise("Gate A", fold_case=True) == "gate a"
    assert cer("GATE", "gate") == 1
    assert cer("GATE", "gate", fold_case=True) == wer("GATE", "gate", fold_case=True) == 0
    assert exact("GATE", "gate", fold_case=True)


def test_composed_and_decomposed_accents_are_the_same():
    assert cer(unicodedata.normalize("NFD", "Café Zürich"), "Café Zürich") == 0


@pytest.mark.parametrize("metric", [cer, wer, exact])
def test_an_empty_truth_is_refused(metric):
    with pytest.raises(ValueError, match="drop blank pages"):
        metric("noise", " \n\t")


# --- edits made visible

def test_pieces_put_together_are_both_texts():
    for a, b in zip(texts(50), texts(50, seed=1)):
        found = pieces(a, b)
        assert "".join(true for _, true, _ in found).replace("\n", " ") == normalise(b)
        assert "".join(read for _, _, read in found) == normalise(a)


def test_marks_do_not_need_colour():
    assert repr(show_edits("Gate 1O", "Gate 10")) == "Gate 1[-0-]{+O+}"
    html = show_edits("Gate 1O", "Gate 10")._repr_html_()
    assert [o for o in ("<del", "<ins", "line-through", "underline") if o not in html] == []


def test_only_wrong_rows_are_shown_when_asked():
    assert repr(show_edits("one\ntwO\nthree", "one\ntwo\nthree", only_wrong=True)) == "tw[-o-]{+O+}"
    assert repr(show_edits("same", "same", only_wrong=True)) == ""


def test_text_that_looks_like_html_stays_text():
    html = show_edits("<script>", "<b>bold</b>")._repr_html_()
    assert "<script" not in html
    assert "<b>" not in html


def test_a_missed_row_end_is_shown_and_ends_the_row():
    assert repr(show_edits("ab", "a\nb")).splitlines() == ["a[-↵-]", "b"]


# --- many items

def test_score_counts_each_item_once_in_order():
    rows = score({"b": "two", "a": "on"}, {"a": "one", "b": "two"}, {"a": 1., "b": 2.}, kind={"a": "scan", "b": "photo"})
    assert rows.to_dict("list") == {"item": ["a", "b"], "edits": [1, 0], "chars": [3, 3], "word_edits": [1, 0], "words": [1, 1], "exact": [False, True],
                                    "seconds": [1., 2.], "kind": ["scan", "photo"]}


@pytest.mark.parametrize(("given", "error", "said"), [
    ({"preds": {"a": "x"}}, ValueError, "1 items missing"),
    ({"preds": {"a": "x", "b": "y", "c": "z"}}, ValueError, "1 unknown"),
    ({"seconds": {"a": 1.}}, ValueError, "`seconds`: 1 items missing"),
    ({"kind": {"a": "scan"}}, ValueError, "`kind`: 1 items missing"),
    ({"preds": ["x", "y"]}, TypeError, r"dict\(zip\(items, values\)\)"),
    ({"truths": {"a": "x", "b": " "}}, ValueError, r"No truth for \['b'\]"),
])
def test_score_refuses_what_does_not_fit(given, error, said):
    with pytest.raises(error, match=said):
        score(**{"preds": {"a": "x", "b": "y"}, "truths": {"a": "x", "b": "y"}, **given})


def test_corpus_rate_gives_each_character_one_voice():
    rows = score({"short": "AI", "long": "b" * 98}, {"short": "A1", "long": "b" * 98})
    assert rate(rows) == 1 / 100
    assert (rows["edits"] / rows["chars"]).mean() == 1 / 4


def test_rate_does_not_depend_on_how_the_text_is_cut():
    rows = made_up(50, np.random.default_rng(0)).assign(part=lambda o: o.index % 3)
    for metric in ("cer", "wer", "exact"):
        parts = [rate(o, metric) for _, o in rows.groupby("part")]
        assert min(parts) <= rate(rows, metric) <= max(parts)
        assert counts(rows, metric, "part").sum().equals(counts(rows, metric).sum())


@pytest.mark.parametrize(("change", "arguments", "said"), [
    (lambda o: o.drop(columns="chars"), {}, "no column chars"),
    (lambda o: o.drop(columns=["words", "word_edits"]), {"metric": "wer"}, "no column word_edits, words"),
    (lambda o: o, {"metric": "accuracy"}, "choose one of cer, wer, exact"),
    (lambda o: o, {"unit": "page"}, "no column page"),
    (lambda o: o.head(0), {}, "is empty"),
    (lambda o: o.assign(seconds=np.nan), {"metric": "seconds"}, "5 of 5 rows have no seconds"),
    (lambda o: o.assign(page=["p", None, "q", "q", "p"]), {"unit": "page"}, "1 of 5 rows have no .* page"),
    (lambda o: o.head(1), {}, "1 item cannot be resampled"),
])
def test_interval_refuses_what_it_cannot_score(change, arguments, said):
    with pytest.raises(ValueError, match=said):
        interval(change(made_up(5, np.random.default_rng(0))), **arguments)


def test_an_interval_of_no_numbers_or_of_no_level_is_refused():
    def mean(values, axis=-1): return values.mean(axis=axis)
    with pytest.raises(ValueError, match="1 of 3 items hold something that is no number"): percentile_bootstrap([np.array([1, np.nan, 2])], mean)
    for level in (95, 0, -.5):
        with pytest.raises(ValueError, match=r"level is .*such as 0\.95"): percentile_bootstrap([np.arange(3.)], mean, level)


def test_slices_add_up():
    rows = made_up(40, np.random.default_rng(0)).assign(kind=["scan", "photo"] * 20)
    table = by_slice(rows, "kind")
    assert table["items"].to_dict() == {"photo": 20, "scan": 20}
    assert (table["cer"] * table["chars"]).sum() / table["chars"].sum() == pytest.approx(rate(rows))
    with pytest.raises(ValueError, match="no column 'font'"):
        by_slice(rows, "font")


# --- rows of pages

def test_edits_of_the_parts_add_up_to_the_whole():
    from rapidfuzz.distance import Levenshtein
    for a, b in zip(texts(50, longest=60), texts(50, seed=1, longest=60)):
        parts = [b[i:i + 7] for i in range(0, len(b), 7)]
        assert edits_per_part(parts, a).sum() == Levenshtein.distance(a, b)


def test_lines_add_up_to_their_pages():
    truths = {f"p{i}": text for i, text in enumerate(texts(20, longest=80))}
    preds = dict(zip(truths, texts(20, seed=1, longest=80)))
    pages, lines = score(preds, truths).set_index("item"), score_lines(preds, truths).groupby("page")
    for column in ("edits", "chars", "word_edits", "words"):
        assert lines[column].sum().to_dict() == pages[column].to_dict()


def test_an_edit_is_charged_to_its_row():
    rows = score_lines({"p": "08:15 Bath\n08:3O Oxford"}, {"p": "08:15 Bath\n\n08:30 Oxford"}, kind={"p": "scan"})
    assert rows[["item", "edits", "exact", "text", "kind"]].to_dict("list") == {
        "item": ["p:0", "p:1"], "edits": [0, 1], "exact": [True, False], "text": ["08:15 Bath", "08:30 Oxford"], "kind": ["scan", "scan"]}


# --- how sure

@pytest.mark.parametrize("metric", list(METRICS))
def test_interval_holds_its_own_value_and_is_seeded(metric):
    rows = made_up(40, np.random.default_rng(1))
    found = interval(rows, metric, resamples=300, seed=3)
    assert found.low <= found.value == rate(rows, metric) <= found.high
    assert found == interval(rows, metric, resamples=300, seed=3) == interval(rows[::-1], metric, resamples=300, seed=3)
    assert found != interval(rows, metric, resamples=300, seed=4)


@pytest.mark.parametrize(("name", "value"), [("SCORING__RESAMPLES", 300), ("SEED", 3)])
def test_draws_are_those_of_the_settings_unless_others_are_asked_for(monkeypatch, name, value):
    rows = made_up(40, np.random.default_rng(1))
    asked = {"resamples": 2000, "seed": 0} | {name.lower().removeprefix("scoring__"): value}
    usual = interval(rows)
    monkeypatch.setenv(f"MLOPS_COURSE_PARAMS__{name}", str(value))
    assert interval(rows) == interval(rows, **asked) != usual
    assert compare(rows, rows.assign(edits=0))[:3] == compare(rows, rows.assign(edits=0), **asked)[:3]
    assert interval(rows, resamples=2000, seed=0) == usual


def test_interval_shrinks_with_more_items():
    def width(n):
        found = interval(made_up(n, np.random.default_rng(2)), resamples=300)
        return found.high - found.low
    assert width(1000) < width(30) / 3


@pytest.mark.slow
def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    found = [interval(made_up(100, generator), resamples=200, seed=i) for i in range(200)]
    assert .88 <= np.mean([o.low <= .05 <= o.high for o in found]) <= .99


def test_drawing_pages_is_wider_where_their_rows_fail_together():
    rows = pd.DataFrame({"item": [f"{i:03}" for i in range(200)], "page": [f"p{i // 20}" for i in range(200)], "chars": 30})
    rows["edits"] = rows["page"].isin(["p1", "p5"]) * 6
    together, alone = interval(rows, unit="page", resamples=500), interval(rows, resamples=500)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_equal_engines_are_undecided():
    rows = made_up(60, np.random.default_rng(0))
    assert compare(rows, rows, resamples=200) == (0, 0, 0, "undecided")


@pytest.mark.slow
def test_a_false_winner_is_rare():
    generator = np.random.default_rng(0)
    verdicts = []
    for i in range(100):
        rows = made_up(60, generator)
        swap = generator.random(60) < .5
        edits = [np.where(swap == side, rows["edits"], generator.permutation(rows["edits"]).clip(max=20)) for side in (True, False)]
        verdicts.append(compare(rows.assign(edits=edits[0]), rows.assign(edits=edits[1]), resamples=200, seed=i).better)
    assert verdicts.count("undecided") > 85


@pytest.mark.parametrize(("metric", "winner"), [("cer", "second"), ("wer", "second"), ("exact", "second")])
def test_a_large_difference_is_found_in_both_directions(metric, winner):
    good = made_up(60, np.random.default_rng(0), .02)
    bad = good.assign(edits=good["edits"] + 5, word_edits=good["word_edits"] + 2, exact=False)
    assert compare(bad, good, metric, resamples=200).better == winner
    assert compare(good, bad, metric, resamples=200).better == "first"


def test_a_small_steady_difference_is_found_where_intervals_overlap():
    bad = made_up(60, np.random.default_rng(0), .2)
    good = bad.assign(edits=(bad["edits"] * .8).astype(int))
    assert interval(good, resamples=300).high > interval(bad, resamples=300).low
    assert compare(bad, good, resamples=300).better == "second"


def test_compare_refuses_other_items_and_other_truths():
    rows = made_up(5, np.random.default_rng(0))
    with pytest.raises(ValueError, match="1 items missing"):
        compare(rows, rows.head(4))
    with pytest.raises(ValueError, match="different truths"):
        compare(rows, rows.assign(chars=rows["chars"] + 1))


def test_table_ranks_engines_by_cer():
    good = made_up(60, np.random.default_rng(0))
    table = score_table({"bad": good.assign(edits=good["edits"] + 3), "good": good}, resamples=200)
    assert list(table.index) == ["good", "bad"]
    assert table[["low", "cer", "high"]].T.apply(lambda o: o.is_monotonic_increasing).all()


# --- how long

def test_first_call_stands_apart():
    found = latency([10., *[1.] * 20])
    assert (found["first"], found["mean"], found["p50"], found["p95"], found["calls"]) == (10, 1, 1, 1, 20)


@pytest.mark.parametrize(("percentile", "calls"), [(.5, 2), (50, 2), (90, 10), (95, 20), (99, 100), (99.9, 1000)])
def test_a_percentile_needs_its_calls(percentile, calls):
    name = f"p{percentile:g}"
    assert min_calls(percentile) == calls
    assert np.isnan(latency([1.] * (calls - 1), [percentile], warm_up=0)[name])
    assert latency([1.] * calls, [percentile], warm_up=0)[name] == 1


# Three holes that mutants of lesson 12 found in this file; the first is the .5 above

def test_a_call_that_took_no_time_or_a_millisecond_counts():
    assert latency([0., 0., .001], (50,), warm_up=0)["p50"] == 0


def test_a_letter_that_folding_takes_apart_is_put_together_again():
    assert normalise("\u1e96", fold_case=True) == "\u1e96"


@pytest.mark.parametrize(("seconds", "said"), [
    ([], "leave none"), ([1.], "warm_up=0"), ([1., -1.], "the first is -1.0"), ([1., float("nan")], "not valid durations")])
def test_latency_refuses_what_is_no_duration(seconds, said):
    with pytest.raises(ValueError, match=said):
        latency(seconds)


@pytest.mark.parametrize("percentile", [0, 100, -5, 101])
def test_a_percentile_lies_between_0_and_100(percentile):
    with pytest.raises(ValueError, match="between 0 and 100"):
        min_calls(percentile)


# --- the saved readings

@pytest.fixture(params=["readings.csv", "prepared.csv"])
def saved(request):
    return pd.read_csv(DATA / "readings" / request.param, keep_default_na=False)


def test_every_page_has_a_reading_by_each_engine_and_is_unchanged_since(saved):
    labels = pd.read_csv(DATA / "pages" / "labels.csv")
    assert not saved.duplicated(["engine", "file"]).any()
    for _, rows in saved.groupby("engine"):
        assert set(rows["file"]) == set(labels["file"])
        assert rows["version"].nunique() == 1
    digests = {o: sha256((DATA / "pages" / o).read_bytes()).hexdigest() for o in labels["file"]}
    changed = [o for o, digest in zip(saved["file"], saved["sha256"]) if digests[o] != digest]
    assert not changed, f"{changed} changed since they were read: run python data/read_pages.py"
    assert set(saved["engine"]) == {"easyocr", "rapidocr", "tesseract"}


def test_saved_readings_come_from_the_locked_versions(saved):
    versions = saved.drop_duplicates("engine").set_index("engine")["version"]
    lock = (DATA.parent / "requirements.lock").read_text(encoding="utf-8").splitlines()
    for engine in ("easyocr", "rapidocr"):
        named = f"{engine}=={versions[engine]}"
        assert named in lock, f"read with {named}, which the lock does not name: run python data/read_pages.py"


# --- the lesson

def table_of(source: str, path: Path = DATA.parent / "nbs" / "03_scoring.ipynb") -> list[str]:
    "The entries of the table below the cell of lesson 03 that holds `source`."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    [html] = [o["data"]["text/html"] for c in cells if source in "".join(c["source"]) for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
    return re.findall("<td>(.*?)</td>", "".join(html))


def test_lesson_shows_each_percentile_that_its_calls_support():
    _first, calls, _mean, p50, p95, p99 = table_of("timed = ")
    assert min_calls(95) <= int(calls) < min_calls(99)
    assert 0 < float(p50) <= float(p95)
    assert p99 == ""


def test_worst_rows_of_the_lesson_are_wrong():
    edits = table_of("worst_rows = ")[2::4]
    assert edits
    assert all(int(o) > 0 for o in edits)
