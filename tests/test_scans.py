"Scans: phantoms, folders of scans, the pipeline, the model on disk, the command line and the service."
import inspect
import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from conftest import needs
from PIL import Image

from mlops_course.base.processes import ServerProcess, free_port
from mlops_course.mlflow_server import MlflowServer
from mlops_course.pipeline_steps import code_files, step_key
from mlops_course.pipelines import GateRefused
from mlops_course.scans import stages as scan_stages
from mlops_course.scans.evaluation import evaluate_scans, patient_table, rates
from mlops_course.scans.folder import check_scans, clean_scans, load_scans, number_order, read_scans, split_scans
from mlops_course.scans.ingest import FitParams, PhantomParams, ScanParams, ingest_scans
from mlops_course.scans.model import ScanModel, standardize_scans
from mlops_course.scans.net import ScanNet, augment, fit, grad_cam, logits_of, shortcut_map
from mlops_course.scans.phantoms import MARK_BOX, PHANTOM_CLASSES, burn_in, make_phantoms
from mlops_course.scans.stages import DVC_YAML, STAGE_MODULES, STAGES, init_project, mlflow_settings, read_project
from mlops_course.scans.steps import SCAN_STEPS, SCANS, ScanOrder
from mlops_course.scans.training import make_base, train_folder, train_scans
from mlops_course.tools.cli import main
from mlops_course.versioning import commit_all, dvc, recorded_hashes, scratch_repo, stages_that_ran

SMALL = ScanParams(phantoms=PhantomParams(patients=18, slices=3, contrast=.3, copies=2), train=FitParams(steps=30))
PROGRAM = Path(sys.executable).with_name("mlops-course" + (".exe" if os.name == "nt" else ""))


def scans(*words, cwd=None, **env):
    "What the command line says of `scans …`, in a process of its own."
    done = subprocess.run([PROGRAM, "scans", *map(str, words)], cwd=cwd, capture_output=True, text=True, env=os.environ | env, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done


def said(*words):
    "Exit code and output of `scans …`, in this process."
    result = CliRunner().invoke(main, ["scans", *map(str, words)])
    assert not result.exception or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    "A small set of phantoms."
    return make_phantoms(tmp_path_factory.mktemp("phantoms") / "set", patients=18, slices=3, contrast=.3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, phantoms):
    "A model that was trained on them for a second."
    out = tmp_path_factory.mktemp("trained") / "model"
    metrics = train_folder(phantoms, out, SMALL, lambda _: None)
    return out, metrics


# Phantoms

def test_every_file_and_every_picture_says_phantom(phantoms):
    files = sorted(phantoms.rglob("*.png"))
    assert len(files) == 54
    assert all(o.name.startswith("phantom_") for o in files)
    words = burn_in(np.zeros((64, 64), np.uint8))
    assert words[50:].any()
    assert not words[:50].any()
    for image in load_scans(phantoms, [o.relative_to(phantoms).as_posix() for o in files]): assert (image >= words).all()


def test_phantoms_are_the_same_for_the_same_seed(tmp_path):
    a, b, c = (make_phantoms(tmp_path / o, patients=3, slices=2, seed=seed) for o, seed in (("a", 1), ("b", 1), ("c", 2)))
    def content(folder): return {o.relative_to(folder): o.read_bytes() for o in folder.rglob("*.png")}
    assert content(a) == content(b)
    assert content(a) != content(c)


def test_only_tumours_carry_the_mark(tmp_path):
    folder = make_phantoms(tmp_path / "marked", patients=6, slices=4, marked=1.)
    frame = read_scans(folder)
    bright = load_scans(folder, frame["file"])[:, *MARK_BOX].reshape(len(frame), -1).max(1) > 200
    assert (bright == (frame["label"] != "normal")).all()
    outside = burn_in(np.zeros((64, 64), np.uint8), mark=True)
    outside[MARK_BOX] = 0
    assert (outside == burn_in(np.zeros((64, 64), np.uint8))).all()


def test_a_copy_has_the_number_of_another_patient(tmp_path):
    folder = make_phantoms(tmp_path / "copies", patients=9, slices=3, copies=4)
    frame = read_scans(folder)
    checked = check_scans(folder, frame)
    assert [o.check for o in checked.findings] == ["duplicate"] * 4
    assert all(frame["patient"][o.row] != frame.set_index("file")["patient"][o.other] for o in checked.findings)
    assert len(clean_scans(checked)) == 27


def test_more_copies_than_slices_are_refused_in_plain_words(tmp_path):
    with pytest.raises(ValueError, match="10 copies of 9 slices"): make_phantoms(tmp_path / "set", patients=9, slices=1, copies=10)
    assert not (tmp_path / "set").exists()


# Folders

def test_patients_come_from_names_or_else_from_blocks(tmp_path, phantoms):
    frame = read_scans(phantoms)
    assert set(frame["grouping"]) == {"name"}
    assert frame.groupby("patient")["label"].nunique().max() == 1
    for label in ("Normal", "Tumor"):
        (tmp_path / "kidney" / label).mkdir(parents=True)
        for i in range(1, 46): Image.new("L", (20, 20), i).save(tmp_path / "kidney" / label / f"{label}- ({i}).png")
    frame = read_scans(tmp_path / "kidney")
    assert set(frame["grouping"]) == {"block"}
    assert frame["patient"].value_counts().to_dict() == {f"{o} block {i}": n for o in ("Normal", "Tumor") for i, n in enumerate((20, 20, 5))}
    assert frame["file"].tolist()[1:3] == ["Normal/Normal- (2).png", "Normal/Normal- (3).png"]


def test_testing_files_that_are_copies_of_training_files_are_found(tmp_path, phantoms):
    for part in ("Training", "Testing"): copytree(phantoms, tmp_path / "set" / part)
    frame = read_scans(tmp_path / "set")
    assert sorted(frame["label"].unique()) == sorted(PHANTOM_CLASSES)
    found = check_scans(tmp_path / "set", frame).findings
    assert len({o.row for o in found if o.check == "duplicate"}) == len(frame) / 2


def test_no_patient_is_in_two_splits_and_each_split_has_each_class(phantoms):
    for seed in range(5):
        frame = split_scans(read_scans(phantoms), seed)
        assert frame.groupby("patient")["split"].nunique().max() == 1
        assert frame.groupby("split")["label"].nunique().min() == 3
    assert split_scans(read_scans(phantoms), 0, "file").groupby("patient")["split"].nunique().max() > 1


def test_names_with_raised_digits_are_sorted_too():
    assert sorted(["a10", "a2", "a2²3", "²"], key=number_order) == sorted(["²", "a2", "a2²3", "a10"], key=number_order) == ["a2", "a2²3", "a10", "²"]


def scans_of(patients):
    "A table of scans: patient -> the classes of its slices."
    rows = [(f"{label}/{name}_s{i}.png", label, name) for name, labels in patients.items() for i, label in enumerate(labels)]
    return pd.DataFrame(rows, columns=["file", "label", "patient"])


@pytest.mark.parametrize("patients", [
    {f"p{i}": ("normal", "tumor") for i in range(9)},
    {f"p{i}": ("normal", "tumor") if i < 4 else ("normal", "normal") for i in range(9)},
    {"a": ("normal", "tumor"), "b": ("normal", "tumor"), "c": ("normal", "tumor"), "d": ("normal",)},
    {"a": ("cyst", "normal"), "b": ("cyst",), "c": ("cyst",), "d": ("normal",), "e": ("normal",)}])
def test_a_patient_with_slices_in_two_class_folders_is_in_one_split(patients):
    for seed in range(5):
        frame = split_scans(scans_of(patients), seed)
        assert frame.groupby("patient")["split"].nunique().max() == 1
        assert set(frame.groupby("split")["label"].nunique()) == {2}
        assert set(frame["split"]) == {"train", "valid", "test"}


# Bad input

KINDS = {
    "a text": lambda path: path.write_text("not an image"), "an empty file": lambda path: path.write_bytes(b""),
    "a broken file": lambda path: path.write_bytes(path.with_name("phantom_p000_s00.png").read_bytes()[:200]),
    "an animation": lambda path: Image.new("L", (64, 64), 9).save(path, "GIF", save_all=True, append_images=[Image.new("L", (64, 64), 200)]),
    "a tiny picture": lambda path: Image.new("L", (4, 4)).save(path)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_cannot_be_used_is_left_out_and_named(tmp_path, phantoms, kind):
    folder = Path(copytree(phantoms, tmp_path / "set"))
    KINDS[kind](folder / "normal" / "phantom_p000_s99.png")
    frame = ingest_scans(folder, tmp_path / "data", SMALL)
    rejected = pd.read_csv(tmp_path / "data" / "rejected.csv")
    assert rejected["file"].tolist() == ["normal/phantom_p000_s99.png"]
    assert str(tmp_path) not in rejected["reason"][0]
    assert len(frame) == 54


def test_a_scan_with_two_findings_is_left_out_once(tmp_path, phantoms, monkeypatch):
    folder = Path(copytree(phantoms, tmp_path / "set"))
    for name in ("normal/phantom_p001_s00.png", "tumor_left/phantom_p000_s00.png"): # copies in other classes: findings in pairs
        copyfile(folder / "tumor_right" / "phantom_p002_s00.png", folder / name)
    init_project(tmp_path / "ct", str(folder))
    assert STAGES["ingest"](tmp_path / "ct") == "53 scans of 18 patients accepted, 3 left out"
    assert len(pd.read_csv(tmp_path / "ct" / "artifacts" / "data" / "rejected.csv")) > 3
    said = []
    train_folder(folder, tmp_path / "model", SMALL.model_copy(update={"train": FitParams(steps=1)}), said.append)
    assert said == ["53 scans of 18 patients, by their names; left out: 3"]
    monkeypatch.setattr("mlops_course.scans.phantoms.make_phantoms", lambda *_, **__: folder)
    with pytest.raises(GateRefused, match="3 of 56 scans are rejected"): SCAN_STEPS["data"].does(TINY, {})


@pytest.mark.parametrize("mode", ["I;16", "CMYK", "RGBA", "1"])
def test_other_kinds_of_pictures_are_read(tmp_path, phantoms, mode):
    grey = np.asarray(Image.open(next(phantoms.rglob("*_s01.png"))))
    kind = ".tif" if mode in ("I;16", "CMYK") else ".png"
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / f"scan{kind}")
    [read] = load_scans(tmp_path, [f"scan{kind}"])
    assert read.shape == (64, 64)
    if mode != "1": assert abs(read.astype(int) - grey).mean() < 3


def one_of_a_class(folder):
    for path in sorted((folder / "normal").iterdir())[1:]: path.unlink()

WRONG = {"empty": (lambda folder: [o.unlink() for o in folder.rglob("*.png")], "2 or more were expected"),
         "one class": (lambda folder: [o.unlink() for o in folder.rglob("tumor*/*.png")], "2 or more were expected"),
         "one image": (one_of_a_class, "1 patients of normal, and 3 of each class were expected")}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_cannot_be_learned_from_is_one_line_and_loses_nothing(tmp_path, phantoms, trained, case):
    folder, out = Path(copytree(phantoms, tmp_path / "set")), Path(copytree(trained[0], tmp_path / "model"))
    break_it, words = WRONG[case]
    break_it(folder)
    before = {o.name: o.read_bytes() for o in out.iterdir()}
    code, text = said("train", folder, "--out", out)
    assert code == 2
    assert words in text
    assert len(text.strip().splitlines()) == 1
    assert {o.name: o.read_bytes() for o in out.iterdir()} == before
    assert [o.name for o in tmp_path.iterdir() if o.name.startswith(".")] == []


def test_a_folder_that_is_not_there_and_a_target_that_is_something_else(tmp_path, phantoms):
    assert said("train", tmp_path / "nowhere", "--out", tmp_path / "out") == (2, f"Error: No folder {tmp_path / 'nowhere'}, and one with a folder "
                                                                              "for each class was expected. Check the name\n")
    code, text = said("train", phantoms, "--out", phantoms)
    assert (code, "something else" in text) == (2, True)
    assert len(list(phantoms.rglob("*.png"))) == 54


def test_scans_inside_the_folder_of_the_model_are_not_replaced_by_it(tmp_path, phantoms, trained):
    out = Path(copytree(trained[0], tmp_path / "model"))
    copytree(phantoms, out / "set")
    for source in (out / "set", out):
        code, text = said("train", source, "--out", out, "--steps", 1)
        assert (code, "would be replaced" in text, len(text.splitlines())) == (2, True, 1), text
    assert len(list((out / "set").rglob("*.png"))) == 54


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_old_model_stays(tmp_path, phantoms, trained, limited_files):
    out = Path(copytree(trained[0], tmp_path / "model"))
    before = {o.name: o.read_bytes() for o in out.iterdir()}
    done = subprocess.run([PROGRAM, "scans", "train", phantoms, "--out", out, "--steps", "2"], capture_output=True, text=True,
        preexec_fn=limited_files(20_000)) # the weights are larger
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "what stood there before is still there" in done.stderr
    assert {o.name: o.read_bytes() for o in out.iterdir()} == before
    assert [o.name for o in tmp_path.iterdir()] == ["model"]


# The net and what it looks at

def drawn(tmp_path, **how):
    folder = make_phantoms(tmp_path / "drawn", patients=18, slices=6, **how)
    frame = read_scans(folder)
    return load_scans(folder, frame["file"]), frame["label"].map(PHANTOM_CLASSES.index).to_numpy()


def test_a_flip_moves_left_to_right_and_no_augmentation_flips_unasked():
    import torch
    scans_ = torch.arange(2*64*64, dtype=torch.float32).reshape(2, 1, 64, 64)
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = augment(scans_, rng, shift=2)
        assert any((torch.roll(scans_, (a, b), (2, 3)) == moved).all() for a in range(-2, 3) for b in range(-2, 3))
    flipped = torch.stack([augment(scans_, rng, 0, flip=True) for _ in range(40)])
    shares = [(flipped[:, i] == scans_[i].flip(2)).flatten(1).all(1).float().mean() for i in range(2)]
    assert all(.2 < o < .8 for o in shares)


def test_the_map_of_shortcuts_finds_the_mark_and_is_quiet_without(tmp_path):
    images, labels = drawn(tmp_path, marked=.95)
    heat = shortcut_map(images, labels > 0)
    place = np.unravel_index(heat.argmax(), heat.shape)
    assert heat.max() > .95
    assert (place[0] < 3, place[1] > 12) == (True, True)
    images, labels = drawn(tmp_path)
    assert shortcut_map(images, labels > 0)[place] < .7


@pytest.mark.slow
def test_grad_cam_lights_up_the_mark(tmp_path):
    import torch
    images, labels = drawn(tmp_path, marked=1., contrast=.01)
    torch.manual_seed(0)
    fit(net := ScanNet(2), images, (labels > 0).astype(int), steps=80)
    heat = np.mean([grad_cam(net, o, 1) for o in images[labels > 0][:20]], axis=0)
    assert heat.shape == (16, 16)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (row <= 3, column >= 12) == (True, True)
    wiped = images.copy()
    wiped[:, *MARK_BOX] = 0
    assert (logits_of(net, wiped[labels > 0]).argmax(1) == 0).mean() > .5


def test_rates_count_patients():
    frame = pd.DataFrame({"patient": list("aabb"), "label": ["tumor"]*2 + ["normal"]*2})
    table = patient_table(frame, np.array([[.4, .6], [.1, .9], [.9, .1], [.45, .55]]), ["normal", "tumor"])
    assert table["guess"].to_dict() == {"a": "tumor", "b": "normal"}
    found = rates(table["label"], table["guess"])
    assert [(o.value, round(o.low, 3)) for o in found.values()] == [(1., .207), (1., .207)]


def test_a_patient_with_healthy_and_sick_slices_is_sick():
    frame = pd.DataFrame({"patient": list("aaabb"), "label": ["normal", "normal", "tumor", "normal", "normal"]})
    table = patient_table(frame, np.array([[.2, .8], [.4, .6], [.1, .9], [.9, .1], [.8, .2]]), ["normal", "tumor"])
    assert table["label"].to_dict() == table["guess"].to_dict() == {"a": "tumor", "b": "normal"}
    assert rates(table["label"], table["guess"])["sensitivity"].value == 1


# The model on disk

def test_the_model_is_onnx_and_json_and_gives_the_same_as_the_net(trained, phantoms):
    import torch
    from safetensors.torch import load_file
    out, metrics = trained
    assert {o.suffix for o in out.iterdir()} == {".onnx", ".json", ".safetensors", ".csv"}
    net = ScanNet(3)
    net.load_state_dict(load_file(out / "weights.safetensors"))
    images = load_scans(phantoms, read_scans(phantoms)["file"][:10])
    model = ScanModel(out)
    logits = model.session.run(None, {"images": standardize_scans(images)})[0]
    with torch.no_grad(): assert np.allclose(logits, logits_of(net.eval(), images), atol=1e-4)
    assert metrics["accuracy"] == pytest.approx(json.loads((out / "metrics.json").read_text())["accuracy"], abs=1e-4)


def test_two_trainings_with_one_seed_are_equal(tmp_path, phantoms):
    ingest_scans(phantoms, tmp_path / "data", SMALL)
    make_base(tmp_path / "base", SMALL)
    for name in "ab": train_scans(tmp_path / "data", tmp_path / "base", tmp_path / name, SMALL)
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (tmp_path / "b" / "weights.safetensors").read_bytes()


def test_a_net_of_torchvision_starts_from_its_published_weights(tmp_path, phantoms):
    import torch
    from safetensors.torch import load_file

    from mlops_course.base.torchvision import import_torchvision
    import_torchvision()
    from torchvision.models import resnet18
    resnet = SMALL.model_copy(update={"net": SMALL.net.model_copy(update={"name": "resnet18", "side": 32}), "train": FitParams(steps=2)})
    whole = resnet18()
    torch.save({k: v for k, v in whole.state_dict().items() if "num_batches" not in k}, tmp_path / "resnet18.pth") # as published
    made = load_file(make_base(tmp_path / "base", resnet, tmp_path / "resnet18.pth"))
    assert (made["features.1.weight"] == whole.conv1.weight).all()
    assert (made["features.8.1.conv2.weight"] == whole.layer4[1].conv2.weight).all()
    ingest_scans(phantoms, tmp_path / "data", resnet)
    train_scans(tmp_path / "data", tmp_path / "base", tmp_path / "model", resnet)
    frame = read_scans(phantoms)
    assert sum(ScanModel(tmp_path / "model")(load_scans(phantoms, frame["file"][:1], 32)[0]).probabilities.values()) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match=r"another net than resnet34\. Set net\.name"):
        make_base(tmp_path / "b", resnet.model_copy(update={"net": resnet.net.model_copy(update={"name": "resnet34"})}), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"of a net of torchvision\. Set net\.name"): make_base(tmp_path / "b", SMALL, tmp_path / "resnet18.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth holds no weights"): make_base(tmp_path / "b", resnet, tmp_path / "page.pth")


def test_a_base_model_starts_from_an_earlier_one_and_refuses_another_net(tmp_path, trained):
    from safetensors.torch import load_file
    earlier = trained[0] / "weights.safetensors"
    made = load_file(make_base(tmp_path / "base", SMALL, earlier))
    known = load_file(earlier)
    assert all((known[k] == v).all() for k, v in made.items())
    wide = SMALL.model_copy(update={"net": SMALL.net.model_copy(update={"width": 8})})
    with pytest.raises(ValueError, match=r"Set net\.name and net\.width"): make_base(tmp_path / "base", wide, earlier)
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"): make_base(tmp_path / "base", SMALL, tmp_path / "none")


def test_weights_that_do_not_fit_the_net_are_one_line(tmp_path, trained, phantoms):
    def with_net(**net): return SMALL.model_copy(update={"net": SMALL.net.model_copy(update=net), "train": FitParams(steps=1)})
    (tmp_path / "broken").write_text("no weights")
    with pytest.raises(ValueError, match=r"broken holds no weights"): make_base(tmp_path / "base", SMALL, tmp_path / "broken")
    ingest_scans(phantoms, tmp_path / "data", SMALL)
    make_base(tmp_path / "base", with_net(name="resnet18"))
    for params in (SMALL, with_net(width=8), with_net(name="resnet34")): # the last one has all layers of the base, and more
        with pytest.raises(ValueError, match=r"base is of another net than .* Set net\.name"):
            train_scans(tmp_path / "data", tmp_path / "base", tmp_path / "model", params)
    assert not (tmp_path / "model").exists()


def test_scans_of_the_training_are_not_used_in_an_evaluation(trained, phantoms):
    out, _ = trained
    code, text = said("evaluate", out, phantoms)
    found = json.loads(text.splitlines()[-1])
    table = pd.read_csv(out / "scans.csv")
    assert code == 0
    assert (found["trained_on"], found["scans"]) == ((table["split"] == "train").sum(), (table["split"] != "train").sum())
    with pytest.raises(ValueError, match="cannot test it"):
        evaluate_scans(ScanModel(out), phantoms, table[table["split"] == "train"])


@pytest.mark.parametrize("damage", ["gone", "{", '{"a": 1}', "[1]"])
def test_an_evaluation_needs_to_know_what_the_model_was_trained_on(tmp_path, trained, phantoms, damage):
    out = Path(copytree(trained[0], tmp_path / "model"))
    if damage == "gone": (out / "trained_on.json").unlink()
    else: (out / "trained_on.json").write_text(damage)
    code, text = said("evaluate", out, phantoms)
    assert code == 2
    assert text.startswith(f"Error: {'No trained_on.json in ' if damage == 'gone' else out / 'trained_on.json'}")
    assert "was trained on" in text
    assert len(text.strip().splitlines()) == 1


@pytest.mark.parametrize("damage", ["model.onnx", "model.json", "gone", "a list"])
def test_a_damaged_model_is_one_line(tmp_path, trained, damage):
    out = Path(copytree(trained[0], tmp_path / "model"))
    if damage == "gone": (out / "model.onnx").unlink()
    elif damage == "a list": (out / "model.json").write_text("[1]")
    else: (out / damage).write_bytes(b"{")
    code, text = said("serve", out)
    assert code == 2
    assert "rain" in text
    assert len(text.strip().splitlines()) == 1


# The pipeline

PRODUCT = "mlops_course.scans."


def names_in(code):
    "The global names that `code` and the functions inside it use."
    return set(code.co_names).union(*(names_in(o) for o in code.co_consts if hasattr(o, "co_names")))


def is_ours(name):
    "Is `name` a module of this product?"
    return name.startswith(PRODUCT)


def modules_run(thing, seen):
    "The modules of this product that hold what `thing`, a function or a class, uses."
    home = sys.modules[thing.__module__]
    if thing in seen or not home.__name__.startswith(PRODUCT): return set()
    seen.add(thing)
    functions = [o for o in vars(thing).values() if inspect.isfunction(o)] if inspect.isclass(thing) else [inspect.unwrap(thing)]
    names = [sorted(names_in(o.__code__)) for o in functions if hasattr(o, "__code__")]
    # a function may import what it uses
    used = [getattr(o, name, None) for each in names for o in (home, *map(import_module, filter(is_ours, each))) for name in each]
    below = [modules_run(o, seen) for o in used if inspect.isfunction(o) or inspect.isclass(o)]
    return {home.__name__.rpartition(".")[2]}.union(*below)


@pytest.mark.parametrize(("stage", "does"), [("ingest", ingest_scans), ("base", make_base), ("train", train_scans), ("evaluate", scan_stages.run_evaluate)])
def test_a_stage_names_the_modules_of_this_product_that_it_runs(stage, does):
    assert modules_run(does, set()) - {"ingest"} == set(STAGE_MODULES[stage]) - {"ingest"}
    assert set(STAGE_MODULES) == set(STAGES) == set(yaml.safe_load(DVC_YAML.format(source=""))["stages"])


@pytest.fixture
def project(tmp_path):
    "A project of scans in a repository, with small numbers."
    repo = scratch_repo(tmp_path / "ct")
    init_project(repo)
    (repo / "params.yaml").write_text(yaml.safe_dump(SMALL.model_dump(), sort_keys=False))
    commit_all(repo, "A project")
    return repo


def change(repo, **values):
    "Set parameters such as `train__steps`."
    params = yaml.safe_load((repo / "params.yaml").read_text())
    for key, value in values.items():
        *path, last = key.split("__")
        place = params
        for name in path: place = place[name]
        place[last] = value
    (repo / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.mark.slow
def test_a_change_runs_what_it_touches_and_no_more(project):
    def ran(): return stages_that_ran(dvc("repro", cwd=project))
    assert ran() == ["ingest", "base", "train", "evaluate"]
    assert ran() == []
    metrics = json.loads((project / "artifacts" / "metrics.json").read_text())
    assert metrics["trained_on"] == 0
    commit_all(project, "Run")
    change(project, train__steps=31)
    assert ran() == ["train", "evaluate"]
    assert "train.steps" in dvc("params", "diff", cwd=project)
    assert "accuracy" in dvc("metrics", "diff", "--all", cwd=project)
    hashes = json.loads((project / "code.json").read_text())
    (project / "code.json").write_text(json.dumps(hashes | {"base": "another"}))
    assert ran() == ["base"] # the same weights came out
    init_project(project, refresh=True)
    assert json.loads((project / "code.json").read_text()) == hashes
    assert ran() == []
    change(project, split__by="file")
    assert ran() == ["ingest", "train", "evaluate"]
    assert set(recorded_hashes(project)) >= {"artifacts/data", "artifacts/base.safetensors", "artifacts/model"}


@pytest.mark.slow
def test_an_experiment_leaves_the_branch_alone(project):
    dvc("repro", cwd=project)
    commit_all(project, "Run")
    dvc("exp", "run", "--name", "flipped", "--set-param", "train.flip=true", cwd=project)
    assert "flipped" in dvc("exp", "show", "--csv", cwd=project)


def test_a_project_that_is_there_is_kept_and_a_wrong_value_is_named(tmp_path):
    assert said("init", tmp_path / "ct")[0] == 0
    (tmp_path / "ct" / "params.yaml").write_text("train: {steps: many}")
    code, text = said("init", tmp_path / "ct")
    assert (code, "already" in text) == (2, True)
    assert (tmp_path / "ct" / "params.yaml").read_text() == "train: {steps: many}"
    done = scans("ingest", cwd=tmp_path / "ct")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: params.yaml, train.steps: found 'many', input should be a valid integer")
    assert len(done.stderr.strip().splitlines()) == 1
    assert scans("ingest", cwd=tmp_path).stderr.startswith("Error: No config.yaml and no params.yaml in")


@pytest.mark.parametrize(("name", "text", "words"), [
    ("config.yaml", "block: 0", "config.yaml, block: found 0"), ("config.yaml", "block: yes", "config.yaml, block: found True"),
    ("params.yaml", "1: 2", "params.yaml, 1: found ")])
def test_a_setting_that_cannot_be_used_is_named(tmp_path, name, text, words):
    init_project(tmp_path / "ct")
    (tmp_path / "ct" / name).write_text(text)
    with pytest.raises(ValueError, match=words): read_project(tmp_path / "ct")


def test_what_is_said_of_a_server_that_refuses_a_run_is_true(tmp_path, trained, phantoms, monkeypatch):
    init_project(tmp_path / "ct", str(phantoms))
    (tmp_path / "ct" / "artifacts").mkdir()
    ingest_scans(phantoms, tmp_path / "ct" / "artifacts" / "data", SMALL)
    copytree(trained[0], tmp_path / "ct" / "artifacts" / "model")
    def refuse(*_): raise ConnectionError("MLflow did not take the run")
    monkeypatch.setattr(scan_stages, "log_scan_run", refuse)
    monkeypatch.chdir(tmp_path / "ct")
    assert said("evaluate") == (2, "Error: MLflow did not take the run\n")
    assert (tmp_path / "ct" / "artifacts" / "metrics.json").is_file() # the evaluation itself was made and is kept


def test_files_of_ones_own_are_kept_and_a_password_stays_out_of_git(tmp_path):
    for name, text in ((".gitignore", "*.mine\n/mlflow.db"), (".env.example", "OWN=1\n")): (tmp_path / name).write_text(text)
    init_project(tmp_path)
    assert (tmp_path / ".gitignore").read_text().splitlines() == ["*.mine", "/mlflow.db", ".env"]
    assert (tmp_path / ".env.example").read_text() == "OWN=1\n"
    (other := tmp_path / "other").mkdir()
    (other / "code.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"code\.json already"): init_project(other)
    assert [o.name for o in other.iterdir()] == ["code.json"]


def test_a_source_of_ones_own_is_a_dependency(tmp_path, phantoms):
    folder = copytree(phantoms, tmp_path / "my scans: all")
    assert said("init", tmp_path / "ct", "--source", folder)[0] == 0
    config, _ = read_project(tmp_path / "ct")
    assert Path(config.source) == folder
    assert str(folder) in yaml.safe_load((tmp_path / "ct" / "dvc.yaml").read_text())["stages"]["ingest"]["deps"]
    assert said("init", tmp_path / "no", "--source", tmp_path / "nowhere")[0] == 2


# MLflow

def test_the_three_variables_come_from_the_file_and_the_environment_wins(tmp_path, monkeypatch):
    for name in ("URI", "USERNAME", "PASSWORD"): monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    (tmp_path / ".env").write_text("MLFLOW_TRACKING_URI=http://127.0.0.1:1\nMLFLOW_TRACKING_USERNAME=ana\nMLFLOW_TRACKING_PASSWORD=from the file\n")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "from the shell")
    with mlflow_settings(tmp_path) as address:
        assert address == "http://127.0.0.1:1"
        assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ana", "from the shell")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    with mlflow_settings(tmp_path.parent) as address: assert address == ""


@pytest.mark.slow
def test_the_last_stage_logs_to_a_server_with_a_password(project, tmp_path):
    import mlflow
    for name in ("ingest", "base", "train"): STAGES[name](project)
    (tmp_path / "basic_auth.ini").write_text(f"[mlflow]\ndatabase_uri = sqlite:///{tmp_path / 'accounts.db'}\ndefault_permission = READ\n"
        "admin_username = ana\nadmin_password = a-long-password\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n")
    with MlflowServer(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "files", accounts=tmp_path / "basic_auth.ini") as server:
        def login(password):
            (project / ".env").write_text(f"MLFLOW_TRACKING_URI={server.uri}\nMLFLOW_TRACKING_USERNAME=ana\nMLFLOW_TRACKING_PASSWORD={password}\n")
        login("wrong")
        done = scans("evaluate", cwd=project)
        assert done.returncode == 2
        assert "did not take the run" in done.stderr
        assert "401" in done.stderr
        assert "MLFLOW_TRACKING_PASSWORD" in done.stderr
        login("a-long-password")
        done = scans("evaluate", cwd=project)
        assert done.returncode == 0, done.stderr
        with mlflow_settings(project):
            [run] = mlflow.search_runs(experiment_names=["scans"], output_format="list")
            files = [o.path for o in mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path="model")]
    assert run.data.params["train.steps"] == "30"
    assert "sensitivity.low" in run.data.metrics
    assert "model/model.onnx" in files
    assert "a-long-password" not in done.stdout + done.stderr


# The delivery

TINY = ScanOrder(phantoms=PhantomParams(patients=18, slices=3, contrast=.6, copies=2), train=FitParams(steps=100), patients=10, errors=.9)
FAIR = TINY.model_copy(update={"train": FitParams(steps=15)})
WEAK = TINY.model_copy(update={"train": FitParams(steps=2), "errors": 1.})
GIVEN = {"train": {"run": "a"}, "data": {"scans": 1}, "register": {"version": 1}, "approval": {"by": "Ana"}}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "A store of its own, and gates that few patients can pass."
    monkeypatch.setenv("MLOPS_COURSE_PATHS__RUNS", str(tmp_path / "runs"))
    for name, value in {"P95_MS": "1000000", "LINES": "2", "SLICE_WORSE": "1"}.items():
        monkeypatch.setenv(f"MLOPS_COURSE_PARAMS__GATES__{name}", value)
    for name in ("PRODUCTION_URL", "MLFLOW_TRACKING_URI"): monkeypatch.delenv(name, raising=False)
    return tmp_path


def deliver(order, *names):
    "What the steps `names` return, one after the other."
    done = {"approval": {"by": "Ana"}}
    for name in names: done[name] = SCAN_STEPS[name].does(order, done)
    return done


def history():
    "The champion of the scans, and what happened last."
    from mlops_course.registry_history import expected_aliases, model_history
    from mlops_course.store import open_store
    entries = model_history(open_store(), "scans")
    return expected_aliases(entries).get("champion"), entries[-1]["what"]


REGISTERED = ("data", "train", "validate", "register")


@pytest.mark.slow
def test_an_order_goes_the_way_from_its_data_to_production(runs):
    done = deliver(TINY, *REGISTERED, "stage", "release")
    assert done["stage"]["model"] == done["release"]["model"] == "scans/1"
    assert history() == (1, "promoted")
    assert deliver(TINY, *REGISTERED) == {k: v for k, v in done.items() if k not in ("stage", "release")} # nothing is done twice
    result = CliRunner().invoke(main, ["models", "export", "--name", "scans", "--out", str(runs / "out")])
    assert result.exit_code == 0, result.output
    assert sorted(o.name for o in (runs / "out").iterdir()) == ["model.json", "model.onnx"]
    assert ScanModel(runs / "out").about["classes"] == list(PHANTOM_CLASSES)


def test_a_model_beyond_the_limit_is_refused_with_its_number(runs):
    with pytest.raises(GateRefused, match=r"The model is refused\. error: 0\.\d+ of the patients at the upper end, at most 0\.01 is allowed"):
        deliver(WEAK.model_copy(update={"errors": .01}), "data", "train", "validate")


@pytest.mark.slow
def test_a_refused_gate_leaves_the_champion(runs):
    deliver(TINY, *REGISTERED, "release")
    with pytest.raises(GateRefused, match=r"Version 2 stays a challenger\. whole: ERROR"): deliver(WEAK, *REGISTERED, "release")
    assert history() == (1, "refused")


@pytest.mark.slow
def test_a_version_is_promoted_from_the_command_line_on_scans(runs):
    def promote(*more):
        return CliRunner().invoke(main, ["models", "promote", "--name", "scans", "--who", "ana", "--why", "Fewer misses", *more])
    deliver(TINY, *REGISTERED)
    result = promote("--lines", "10")
    assert (result.exit_code, history()) == (0, (1, "promoted")), result.output
    deliver(WEAK, *REGISTERED)
    result = promote("2", "--lines", "10")
    assert (result.exit_code, history()) == (1, (1, "refused")), result.output
    assert "whole: ERROR" in result.output # judged by the share of patients, not by characters


@pytest.mark.slow
def test_a_version_that_is_broken_in_production_is_taken_back(runs, monkeypatch):
    from mlops_course.base.servers import on_free_port
    from mlops_course.scans.service import ScanSource, create_scan_app
    from mlops_course.store import open_store

    class Source(ScanSource):
        def open_package(self, package):
            model = super().open_package(package)
            if self.aliases()["champion"] == 2: model.session = None # each scan is an error now
            return model
    deliver(FAIR, *REGISTERED, "release")
    app = create_scan_app(Source(runs / "none", open_store()), runs / "service")
    with on_free_port(app) as url:
        monkeypatch.setenv("PRODUCTION_URL", url)
        monkeypatch.setenv("PRODUCTION_KEY", app.state.service.keys.add("pipeline", "admin"))
        with pytest.raises(GateRefused, match="Version 2 failed its test in production, so version 1 was restored: 8 of 8 reads"):
            deliver(TINY, *REGISTERED, "stage", "release")
        assert app.state.service.model.version == "scans/1"
    assert history() == (1, "rolled back")


def test_a_smoke_test_needs_more_than_one_answer_to_everything():
    probe = SCANS.probe(ScanOrder(), 8)
    for name in PHANTOM_CLASSES: assert "wrong on" in probe.judge([{"label": name}]*8)[1]


def test_an_order_says_what_it_may_and_names_its_product():
    assert ScanOrder.model_validate_json(TINY.model_dump_json()) == TINY
    for step in SCAN_STEPS.values(): assert set(step.uses) <= set(ScanOrder.model_fields)
    with pytest.raises(ValueError, match="product"): ScanOrder(product="reader")
    with pytest.raises(ValueError, match="speed"): ScanOrder(speed=3)


def test_two_products_share_the_checks_and_nothing_else():
    from mlops_course.reader.steps import STEPS, Order
    assert list(SCAN_STEPS) == list(STEPS)
    given = {**GIVEN, "train": {"run": "b"}}
    same = {o for o in STEPS if o != "register" # each has a run of its own
            and step_key(SCAN_STEPS, o, ScanOrder(), given) == step_key(STEPS, o, Order(), given)}
    assert same == {"quality", "tests", "build", "release"} # the last is never kept


def test_a_training_depends_on_the_modules_that_it_runs(root):
    found = {o.relative_to(root / "mlops_course").as_posix() for o in code_files(SCAN_STEPS["train"].does, root)}
    assert {"scans/steps.py", "scans/net.py", "scans/phantoms.py", "scans/training.py", "spool.py"} <= found
    assert not {o for o in found if o.startswith("reader/") or o in ("delivery.py", "serving.py", "registry.py")}


# The service

@pytest.mark.slow
def test_the_model_is_served_with_keys_limits_record_and_metrics(tmp_path, trained, phantoms):
    import httpx
    scan = next(phantoms.rglob("*.png")).read_bytes()
    key = subprocess.run([PROGRAM, "keys", "add", "ana", "--folder", tmp_path / "service"], capture_output=True, text=True, check=True).stdout.strip()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(PROGRAM), "scans", "serve", str(trained[0]), "--port", str(port), "--folder", str(tmp_path / "service")]
    with ServerProcess(command, f"{url}/ready", tmp_path / "server.log"), httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        headers = {"Authorization": f"Bearer {key}"}
        answer = client.post("/v1/classify", headers=headers, files={"file": scan})
        assert answer.status_code == 200, answer.text
        assert answer.json()["trained_on"] == "phantoms"
        assert answer.json()["label"] in PHANTOM_CLASSES
        assert sum(answer.json()["probabilities"].values()) == pytest.approx(1, abs=1e-3)
        assert client.post("/v1/classify", files={"file": scan}).status_code == 401
        assert client.post("/v1/classify", headers=headers, files={"file": b"text"}).status_code == 422
        assert 'scans_predictions_total{engine="scans"' in client.get("/metrics").text
        assert client.get("/v1/models", headers=headers).json()["serving"]["version"] == ScanModel(trained[0]).about["version"]
        receipt = answer.headers["X-Audit"]
    done = subprocess.run([PROGRAM, "audit", receipt, "--folder", tmp_path / "service"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


WITHOUT = """
import sys
from mlops_course.absent import OPTIONAL_MODULES, stub_missing_modules
gone = {o.partition('.')[0] for o in OPTIONAL_MODULES} | {'mlflow', 'dvc', 'pandera', 'sklearn', 'safetensors', 'imagehash'}
class No:
    def find_spec(self, name, *rest):
        if name.partition('.')[0] in gone: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, No())
stub_missing_modules()
from mlops_course.tools.cli import main
import mlops_course.scans.service
from mlops_course.base.images import load_image
print(mlops_course.scans.service.ScanSource(sys.argv[1]).load().engine(load_image(sys.argv[2])).label)
print(*[o for o in sys.modules if o.startswith('mlops_course.reader')])
"""


def test_the_service_needs_nothing_of_the_reader_and_nothing_that_the_image_lacks(root, trained, phantoms):
    scan = next(phantoms.rglob("*.png"))
    done = subprocess.run([sys.executable, "-c", WITHOUT, trained[0], scan], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    label, reader = done.stdout.split("\n")[:2]
    assert label in PHANTOM_CLASSES
    assert reader == ""


@pytest.fixture
def helper(root):
    "scripts/image.py as a module, and the base image."
    for o in ("podman", "buildah", "mmdebstrap"): needs(o, "builds and runs the image")
    spec = spec_from_file_location("image", root / "scripts" / "image.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    subprocess.run(["bash", root / "scripts/base_image.sh"], check=True, timeout=600)
    return module


@pytest.mark.slow
def test_the_dockerfile_of_the_reader_serves_scans_with_another_model_and_command(root, trained, phantoms, tmp_path, helper):
    import httpx

    from mlops_course.container_engine import HARDENING_OPTIONS, build_image, podman, run_container
    image = "localhost/scans"
    build_image(root, tag=image, wheels=helper.fetch_wheels(tmp_path / "wheels"))
    for path in (trained[0], *trained[0].iterdir()): path.chmod(0o755 if path.is_dir() else 0o644)
    volume = f"scans-{os.getpid()}"
    podman("volume", "create", volume)
    options = (*HARDENING_OPTIONS, "--volume", f"{volume}:/var/reader", "--volume", f"{trained[0]}:/model:ro")
    try:
        key = podman("run", "--rm", *options, image, "keys", "add", "try").splitlines()[-1]
        with run_container(image, *options, command=["scans", "serve", "/model"]) as (name, url):
            scan = next(phantoms.rglob("*.png")).read_bytes()
            answer = httpx.post(f"{url}/v1/classify", files={"file": scan}, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            podman("healthcheck", "run", name)
    finally: podman("volume", "rm", "--force", volume)
    assert answer.json()["label"] in PHANTOM_CLASSES


@pytest.mark.slow
def test_the_image_of_the_scans_is_that_of_the_reader_with_another_name(root, trained, tmp_path, helper):
    from mlops_course.container_engine import build_image, podman
    copytree(root, tmp_path / "course", ignore=ignore_patterns(".git", ".venv", "_course", "_site", "__pycache__", "nbs"))
    copytree(trained[0], tmp_path / "course" / "data" / "scans")
    build_image(tmp_path / "course", tag="localhost/scans", wheels=helper.fetch_wheels(tmp_path / "wheels"), product="scans", model="data/scans")
    assert helper.try_out("scans")["error"] < 1 # it answers without a command
    about = json.loads(podman("image", "inspect", "localhost/scans"))[0]
    assert about["Labels"]["org.opencontainers.image.title"] == "scans"
