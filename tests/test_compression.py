"Students, adapters and eight-bit files (lesson 10), across files and the command line. The nets are tiny: what is tested is the machinery."
import json
from copy import deepcopy

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from mlops_course.reader.compression import (
    NET_PARTS,
    TeacherCache,
    adapt,
    adapter_layers,
    apply_temperature,
    distill,
    draw_from,
    draw_kinds,
    load_adapter,
    make_distillation_loss,
    measure_model,
    merge_adapter,
    save_adapter,
    soft_target_loss,
)
from mlops_course.reader.net import Batch, Recogniser, ctc_loss
from mlops_course.reader.quantisation import quantise
from mlops_course.reader.recognition import Design, OnnxRecogniser, stack_lines
from mlops_course.reader.training import Recipe, draw_lines
from mlops_course.reader.weights import export_onnx, load_recogniser, save_recogniser, weights_fingerprint, weights_mb
from mlops_course.tools.cli import main

SHORT = Recipe(steps=3, batch=4, width=16, depth=1)
DISPLAYS = draw_kinds(display=1)


def tiny(seed=0, width=32, **more):
    torch.manual_seed(seed)
    return Recogniser(Design(width=width, depth=1, **more)).eval()


@pytest.fixture(scope="module")
def lines():
    return draw_lines(12, 0, "v1", "test")


@pytest.fixture(scope="module")
def images(lines):
    return stack_lines([o for o, _ in lines[:4]])


@pytest.fixture(scope="module")
def adapted():
    "A tiny net, and a copy of it with an adapter that has learnt a little."
    net = tiny()
    return net, adapt(net, SHORT, DISPLAYS, every=3)[0]


# The teacher's answers

def test_a_stored_answer_is_not_asked_for_again(images, tmp_path):
    first = TeacherCache(tiny(), tmp_path)
    said = first(torch.from_numpy(images))
    again = TeacherCache(tiny(), tmp_path) # as after a restart
    assert torch.equal(again(torch.from_numpy(images)), said)
    assert (first.asked, again.asked) == (1, 0)


def test_another_teacher_is_asked_itself(images, tmp_path):
    said = TeacherCache(tiny(0), tmp_path)(torch.from_numpy(images))
    other = TeacherCache(tiny(1), tmp_path)
    assert not torch.equal(other(torch.from_numpy(images)), said)
    assert other.asked == 1


@pytest.mark.slow
def test_a_training_with_the_same_lines_asks_once_about_each_batch(lines, tmp_path):
    def kept_after_a_training():
        distill(tiny(), SHORT, tmp_path, alpha=1, draw=lambda n, _seed, *rest: draw_from(lines)(n, 0), every=3, valid=lines[:2])
        return {o.name: o.stat().st_mtime_ns for o in tmp_path.glob("*.npy")}
    first = kept_after_a_training()
    assert 1 <= len(first) <= SHORT.steps # of so few lines two batches may be alike
    assert kept_after_a_training() == first


def test_answers_are_read_without_running_what_a_file_holds(images, tmp_path):
    answers = TeacherCache(tiny(), tmp_path)
    answers(torch.from_numpy(images))
    path, = tmp_path.glob("*.npy")
    np.save(path, np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"): answers(torch.from_numpy(images))


# The student

def test_a_higher_temperature_is_less_sure():
    given = torch.tensor([.9, .09, .01]).log()
    largest = [apply_temperature(given, o).exp().max().item() for o in (1, 2, 5, 1000)]
    assert largest == sorted(largest, reverse=True)
    assert (largest[0], largest[-1]) == (pytest.approx(.9), pytest.approx(1/3, abs=.01))


def test_the_loss_does_not_shrink_with_the_temperature(images):
    student, teacher = (torch.from_numpy(tiny(o).log_probs(images)) for o in (0, 1))
    low, high = (soft_target_loss(student, teacher, o).item() for o in (1., 4.))
    assert .3 < high/low < 3


def test_alpha_shares_the_loss_between_teacher_and_labels(lines, images, tmp_path):
    batch = Batch(torch.from_numpy(images), [o for _, o in lines[:4]])
    given, answers = torch.from_numpy(tiny(1).log_probs(images)), TeacherCache(tiny(), tmp_path)
    soft, hard = soft_target_loss(given, answers(batch.images)).item(), ctc_loss(given, batch).item()
    for alpha in (0, .25, 1): assert make_distillation_loss(answers, alpha=alpha)(given, batch).item() == pytest.approx(alpha*soft + (1 - alpha)*hard, rel=1e-4)


def test_a_teacher_alone_never_looks_at_texts(images, tmp_path):
    nobody = Batch(torch.from_numpy(images), ["\0"]*4) # in no alphabet
    given = torch.from_numpy(tiny(1).log_probs(images))
    assert make_distillation_loss(TeacherCache(tiny(), tmp_path), alpha=1)(given, nobody) > 0


def test_a_student_comes_closer_to_its_teacher(images, tmp_path):
    teacher, recipe = tiny(), Recipe(steps=25, batch=4, width=16, depth=1)
    student, _ = distill(teacher, recipe, tmp_path, alpha=1, every=25)
    far = soft_target_loss(*(torch.from_numpy(o.log_probs(images)) for o in (tiny(width=16), teacher))).item()
    near = soft_target_loss(*(torch.from_numpy(o.log_probs(images)) for o in (student, teacher))).item()
    assert near < far


@pytest.mark.parametrize(("wrong", "said"), [({"temperature": 0}, "above 0"), ({"alpha": 1.5}, "from 0"), ({"alpha": -.1}, "from 0")])
def test_a_knob_out_of_range_is_refused(wrong, said, tmp_path):
    with pytest.raises(ValueError, match=said): distill(tiny(), SHORT, tmp_path, **wrong)


def test_a_teacher_with_another_alphabet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="same alphabet"): distill(tiny(alphabet="abc"), SHORT, tmp_path)


# Lines

def test_few_lines_are_all_that_is_drawn(lines):
    drawn = draw_from(lines)(50, 0)
    assert {text for _, text in drawn} <= {text for _, text in lines}
    assert [o for _, o in draw_from(lines)(50, 0)] == [o for _, o in drawn] != [o for _, o in draw_from(lines)(50, 1)]


def test_kinds_come_in_their_shares():
    drawn = draw_kinds(display=3, render=1)(200, 0, longest=8)
    dark = sum(np.median(image) < 128 for image, _ in drawn)
    assert .6 < dark/200 < .9


@pytest.mark.parametrize("mix", [{}, {"neon": 1}])
def test_an_unknown_kind_is_refused(mix):
    with pytest.raises(ValueError, match="photo_simulated"): draw_kinds(**mix)


# The adapter

def test_an_adapter_off_leaves_the_net_as_it_was_to_the_bit(adapted, images):
    net, worn = adapted
    assert abs(worn.log_probs(images) - net.log_probs(images)).max() > 1e-3
    with worn.disable_adapter(): assert abs(worn.log_probs(images) - net.log_probs(images)).max() < 1e-5
    assert weights_fingerprint(worn) == weights_fingerprint(net) == weights_fingerprint(tiny())


def adapted_on(lines, **how):
    "A tiny net with an adapter that has learnt from `lines` in one step."
    return adapt(tiny(), Recipe(steps=1, batch=2), draw_from(lines), valid=lines[:2], **how)[0]


@pytest.mark.parametrize("targets", [("eye",), ("along", "say")])
def test_only_the_target_modules_learn(targets, lines):
    names = [name for name, o in adapted_on(lines, targets=targets).named_parameters() if o.requires_grad]
    assert {name.removeprefix("base_model.model.").split(".")[0] for name in names} == set(targets)


def test_the_adapter_grows_with_its_rank(lines):
    one, four = (adapted_on(lines, rank=rank).get_nb_trainable_parameters()[0] for rank in (1, 4))
    assert four == 4*one


@pytest.mark.parametrize("targets", [(), ("query", "key")])
def test_unknown_target_modules_are_refused(targets):
    with pytest.raises(ValueError, match=", ".join(NET_PARTS)): adapter_layers(tiny(), targets)


def test_rank_zero_is_refused(lines):
    with pytest.raises(ValueError, match="positive integer"): adapted_on(lines, rank=0)


def test_a_merged_net_is_an_ordinary_one_that_reads_the_same(adapted, images, tmp_path):
    _, worn = adapted
    made = merge_adapter(worn)
    assert type(made) is Recogniser
    assert not any(o._forward_pre_hooks for o in made.modules()) # nothing of the adapter's training stays behind
    assert abs(made.log_probs(images) - worn.log_probs(images)).max() < 1e-4
    save_recogniser(made, tmp_path)
    assert np.array_equal(load_recogniser(tmp_path).log_probs(images), made.log_probs(images))
    with worn.disable_adapter(): assert abs(worn.log_probs(images) - made.log_probs(images)).max() > 0 # it was a copy that was merged


def test_an_adapter_comes_back_from_its_file(adapted, images, tmp_path):
    net, worn = adapted
    save_adapter(worn, tmp_path/"adapter")
    back = load_adapter(net, tmp_path/"adapter")
    kept = worn.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in back.state_dict().items())
    assert abs(back.log_probs(images) - worn.log_probs(images)).max() < 1e-5


def test_an_adapter_is_refused_beside_another_net(adapted, tmp_path):
    save_adapter(adapted[1], tmp_path)
    with pytest.raises(ValueError, match="Load the net that it was trained on"): load_adapter(tiny(1), tmp_path)


def test_a_damaged_adapter_is_refused(adapted, tmp_path):
    save_adapter(adapted[1], tmp_path)
    raw = bytearray((tmp_path/"adapter_model.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path/"adapter_model.safetensors").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"): load_adapter(adapted[0], tmp_path)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="save_adapter"): load_adapter(tiny(), tmp_path)


# Eight bits

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return export_onnx(tiny(width=64), tmp_path_factory.mktemp("onnx")/"whole.onnx")


@pytest.mark.parametrize("dynamic", [False, True])
def test_eight_bits_take_less_and_say_nearly_the_same(whole, dynamic, lines, images, tmp_path):
    made = quantise(whole, tmp_path/"small.onnx", [] if dynamic else [o for o, _ in lines], dynamic)
    assert weights_mb(made) < .6*weights_mb(whole)
    small, large = OnnxRecogniser(made), OnnxRecogniser(whole)
    assert small.design == large.design
    assert abs(small.log_probs(images) - large.log_probs(images)).max() < .1
    assert [o.name for o in tmp_path.iterdir()] == ["small.onnx"] # and nothing that was needed on the way


def test_the_weights_are_really_eight_bits(whole, lines, tmp_path):
    model = onnx.load(quantise(whole, tmp_path/"small.onnx", [o for o, _ in lines]))
    def count(kind): return sum(int(np.prod(o.dims)) for o in model.graph.initializer if o.data_type == kind)
    assert count(onnx.TensorProto.INT8) > 10*count(onnx.TensorProto.FLOAT)


def test_static_quantisation_without_lines_is_refused(whole, tmp_path):
    with pytest.raises(ValueError, match="dynamic=True"): quantise(whole, tmp_path/"small.onnx")
    assert list(tmp_path.iterdir()) == []


def test_quantising_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="export_onnx"): quantise(tmp_path/"none.onnx", tmp_path/"small.onnx", dynamic=True)


# Measuring

def test_an_adapter_s_size_is_that_of_its_weights(adapted, tmp_path):
    save_adapter(adapted[1], tmp_path)
    assert weights_mb(tmp_path) == (tmp_path/"adapter_model.safetensors").stat().st_size/1e6
    with pytest.raises(FileNotFoundError, match="weights were expected"): weights_mb(tmp_path/"none")


def test_a_measure_is_an_error_rate_and_a_time(lines):
    found = measure_model(tiny(), lines, timed=3)
    assert found["ms"] > 0
    assert found["cer"] > .5 # it has learnt nothing


# The commands

def compress(*words):
    result = CliRunner().invoke(main, ["compress", *map(str, words)])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.fixture
def folder(tmp_path):
    save_recogniser(tiny(), tmp_path/"teacher")
    return tmp_path


def test_the_command_distils_a_student_of_half_the_width(folder):
    words = ("distill", "--teacher", folder/"teacher", "--out", folder/"student", "--steps", 2, "--batch", 2, "--answers", folder/"answers")
    said = compress(*words, "--temperature", 3, "--alpha", 1)
    assert len(list((folder/"answers").iterdir())) == 2
    assert load_recogniser(folder/"student").design == Design(width=16, depth=1)
    about = json.loads((folder/"student"/"recogniser.json").read_text(encoding="utf-8"))
    assert (about["temperature"], about["alpha"], about["teacher"]) == (3, 1, weights_fingerprint(tiny()))
    assert said["mb"] == pytest.approx(weights_mb(folder/"student"), abs=1e-4)


@pytest.mark.slow
def test_the_command_adapts_chosen_modules(folder):
    words = ("adapt", "--model", folder/"teacher", "--steps", 2, "--batch", 2, "--rank", 2, "--alpha", 4, "--target-modules", "eye", "--target-modules", "say")
    compress(*words, "--out", folder/"adapter")
    config = json.loads((folder/"adapter"/"adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (2, 4, sorted(adapter_layers(tiny(), ("eye", "say"))))
    compress(*words, "--out", folder/"merged", "--merge")
    images = stack_lines([o for o, _ in DISPLAYS(3, 0)])
    apart, together = load_adapter(tiny(), folder/"adapter"), load_recogniser(folder/"merged")
    assert abs(apart.log_probs(images) - together.log_probs(images)).max() < 1e-4


def test_the_command_quantises(folder):
    said = compress("quantise", "--model", folder/"teacher", "--out", folder/"small.onnx", "--lines", 4)
    assert OnnxRecogniser(folder/"small.onnx").design == tiny().design
    assert said["mb"] < said["mb_before"]


@pytest.mark.parametrize("words", [("distill", "--alpha", 2), ("distill", "--temperature", 0), ("adapt", "--kind", "neon"),
                                   ("adapt", "--target-modules", "query")])
def test_a_wrong_word_is_one_line_and_no_file(folder, words):
    name = "--teacher" if words[0] == "distill" else "--model"
    result = CliRunner().invoke(main, ["compress", *map(str, words), name, str(folder/"teacher"), "--out", str(folder/"out")])
    assert result.exit_code == 2
    assert "expected" in result.output
    assert not (folder/"out").exists()


def test_a_net_is_not_changed_by_what_is_made_of_it(adapted, images):
    net = deepcopy(adapted[0])
    merge_adapter(adapt(net, SHORT, DISPLAYS, every=3)[0])
    assert weights_fingerprint(net) == weights_fingerprint(tiny())
