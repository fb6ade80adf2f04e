"The recogniser that the project ships, held to the limits in params.yaml (lesson 12)."
import pytest

from mlops_course.base.settings import load_settings
from mlops_course.behaviour import run_capabilities
from mlops_course.reader.boxes import read_twice
from mlops_course.reader.capabilities import CAPABILITIES, model_gates
from mlops_course.reader.recognition import OnnxRecogniser
from mlops_course.reader.trials import draw_trial_lines, evaluate_model


@pytest.mark.slow
def test_shipped_recogniser_holds_its_gates_and_its_gaps_are_still_gaps():
    params = load_settings().params
    path = load_settings().paths.data/'recogniser'/'model.onnx'
    net = OnnxRecogniser(path)
    rows = evaluate_model(net, draw_trial_lines(params.gates.lines, 0, tuple(params.gates.slices)))
    gates = model_gates(rows, run_capabilities(lambda images: read_twice(net, images), CAPABILITIES), path.stat().st_size/1e6)
    assert {'latency', 'size', *params.testing.gaps} <= {o.name for o in gates}
    assert {o.name: o.said for o in gates if not o.passed and o.name not in params.testing.gaps} == {}
    assert [o.name for o in gates if o.passed and o.name in params.testing.gaps] == [] # a gap that is closed leaves the list
