"""Training and evaluation on a GPU that does nothing: they stay on it, never wait for it, and multiply in bf16.

No kernel runs, so that all values are nonsense. Everything else is real: see the C++ files.
"""

import json

import pytest
from fake_gpu import library
from fake_gpu.runs import BATCHES, CHECKS, CHOOSING, COMPILED, EVALUATIONS, FAULTS, NODE, NODE_STEPS, TRAININGS

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(bool(library.why_not()), reason=str(library.why_not()))]
ALL = [*TRAININGS, *CHOOSING, *FAULTS, *CHECKS, NODE, *(f"evaluation, {kind}" for kind in EVALUATIONS)]


def execute(names, folder):
    """What was noted of the runs of these names, which one process executes."""
    printed = library.run("execute", *names, folder=folder)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"name"')]
    return {line["name"]: line for line in lines}


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    return execute(ALL, tmp_path_factory.mktemp("runs"))


def assert_faultless(events):
    assert events["error"] == ""
    # Otherwise nothing was watched.
    assert events["kernels"] > 100
    assert events["waits"] == {}
    assert events["pageable"] == 0
    assert events["float32"] == 0


@pytest.mark.parametrize("name", [name for name in ALL if name not in [*CHOOSING, *FAULTS, *CHECKS, NODE]])
def test_a_run_stays_on_the_gpu_and_never_waits(events, name):
    assert_faultless(events[name])


@pytest.mark.parametrize("name", CHOOSING)
def test_images_that_choose_their_order_wait_once_a_batch(events, name):
    assert list(events[name]["waits"].values()) == [BATCHES - 1]
    # The copy that is waited for.
    assert events[name]["pageable"] == BATCHES - 1
    assert_faultless({**events[name], "waits": {}, "pageable": 0})


def test_a_node_of_a_cluster_computes_on_the_gpu_and_waits_for_its_answers_alone(events):
    noted = events[NODE]
    assert noted["error"] == ""
    assert noted["kernels"] >= 10 * NODE_STEPS
    assert list(noted["waits"].values()) == [NODE_STEPS, NODE_STEPS]  # what comes in and what goes out
    assert noted["pageable"] == 2 * NODE_STEPS


@pytest.mark.parametrize(("fault", "kind"), FAULTS.items())
def test_a_fault_in_a_training_step_is_noticed(events, fault, kind):
    with pytest.raises(AssertionError):
        assert_faultless(events[fault])
    noticed = {name for name in ("waits", "pageable", "float32", "error") if events[fault][name]}
    assert noticed == {kind}


@pytest.mark.parametrize(("name", "fault"), CHECKS.items())
def test_check_gpu_notices_a_training_that_waits(events, name, fault):
    assert ("a training step waited" in events[name]["error"]) == bool(fault)
    assert bool(events[name]["error"]) == bool(fault)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_layers_neither(tmp_path, name):
    assert_faultless(execute([name], tmp_path)[name])
