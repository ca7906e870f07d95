"""A Ray cluster of four processes on this machine, some of which are killed or stopped."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import psutil
import pytest
import ray.util.metrics
import torch
from aiohttp import ClientSession, ClientTimeout
from aiohttp.test_utils import TestClient, TestServer
from helpers import SMALL, fails
from PIL import Image

import layershuffle
from layershuffle import Order, UserError
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.commands.serve import serve_command
from layershuffle.commands.serve import status as status_table
from layershuffle.orders.recorded import read_orders
from layershuffle.results import ModelInfo
from layershuffle.serving.actions import Ended
from layershuffle.serving.cluster import Cluster
from layershuffle.serving.dispatcher import Dispatcher
from layershuffle.serving.event_log import EventLog
from layershuffle.serving.http_server import MAX_BYTES, HttpServer, listening
from layershuffle.serving.metrics import Metrics
from layershuffle.serving.model_parts import part_for
from layershuffle.serving.placement import gpu_share, spread
from layershuffle.serving.policy import Policy
from layershuffle.serving.ray_connection import SYSTEM_CONFIG, connect

HELD = [[0, 1], [1, 2], [2, 3], [3, 0]]
"""The steps that each of the four nodes holds."""


def one_model():
    """A model that encodes positions, with weights far from their initial symmetry."""
    # As in the nodes: the number of threads decides how sums are rounded.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = layershuffle.create_model("vit_tiny_patch16_224", 5, **SMALL, position="encode").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.mark.slow
def test_a_machine_is_killed_while_requests_run(tmp_path):
    """Two raylets stand for two machines. It is the first test, because a process has one Ray cluster at a time."""
    from ray.cluster_utils import Cluster as Machines

    model = one_model()
    log = tmp_path / "events.jsonl"
    # So many that some still run when the loss is noticed.
    images = pictures(200)
    machine = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    machines = Machines(initialize_head=True, head_node_args={**machine, "_system_config": SYSTEM_CONFIG})
    killed = machines.add_node(**machine)

    async def submit():
        placement = [[0, 1], [2, 3]]
        async with Cluster(model, placement, address=machines.address, event_log=log, start_seconds=300) as cluster:
            waiting = [asyncio.create_task(cluster.submit(batch)) for batch in images]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            killed.all_processes["raylet"][0].process.kill()
            killed_at = time.time()
            return killed_at, await asyncio.gather(*waiting)

    try:
        killed_at, results = asyncio.run(submit())
    finally:
        machines.shutdown()

    check(model, images, results)
    (lost,) = events(log, "lost")
    assert lost["time"] < killed_at + 5  # with Ray's own health checks it would be 15 s

    # The other node has loaded the steps of the one that was lost.
    (joined,) = [event for event in events(log, "joined") if event["node"] == lost["node"]]
    assert sorted(event["step"] for event in events(log, "loaded")) == joined["steps"]

    # Every request ended once, some before the loss and some after it.
    ended = events(log, "ended")
    assert sorted(event["request"] for event in ended) == [*range(1, len(images) + 1)]
    assert ended[0]["time"] <= lost["time"] <= ended[-1]["time"]


def recording(original, sums):
    """A method of a metric that does what the original does, and adds the value to ``sums`` by the metric's name."""

    def record(metric, value=1):
        original(metric, value)
        sums[metric.info["name"]] += value

    return record


@pytest.fixture(scope="module")
def metrics():
    """The sum of what was recorded of each of Ray's metrics, by its name."""
    sums = Counter()
    counter = ray.util.metrics.Counter
    histogram = ray.util.metrics.Histogram
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counter, "inc", recording(counter.inc, sums))
        patch.setattr(histogram, "observe", recording(histogram.observe, sums))
        yield sums


@pytest.fixture(scope="module")
def served(tmp_path_factory, metrics):
    """A runner of an event loop, a model that encodes positions, its cluster, and the cluster's log."""
    model = one_model()
    log = tmp_path_factory.mktemp("log") / "events.jsonl"
    policy = Policy("any", step_deadline=1.5, request_deadline=15)
    with asyncio.Runner() as runner:
        cluster = Cluster(model, HELD, policy, window=6, event_log=log, start_seconds=300)
        runner.run(cluster.__aenter__())
        yield runner, model, cluster, log
        runner.run(cluster.__aexit__())


@contextmanager
def policy_of(cluster, **changes):
    """Within this context the cluster's policy has these changes."""
    before = cluster.policy
    cluster.policy = cluster.router.policy = replace(before, **changes)
    yield
    cluster.policy = cluster.router.policy = before


def pictures(count):
    """So many requests of two random images each."""
    return torch.randn(count, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def check(model, images, results):
    """Each request ran every layer once, and has the logits of the model in the order that ran, bit for bit."""
    for batch, result in zip(images, results, strict=True):
        assert result.order.layers == {0, 1, 2, 3}
        assert len(result.order) == 4
        with torch.inference_mode():
            assert torch.equal(result.logits, model(batch, result.order).logits)


def processes(cluster):
    """The process ids of the nodes that aren't gone, by name."""
    return {node.node: node.process for node in cluster.state().nodes if node.status != "gone"}


def png(picture):
    """The picture as the bytes of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def info_of(model):
    return ModelInfo(name="small", source="test", config=model.config)


def status_of(cluster, name):
    """The status of the node of this name."""
    (status,) = [node.status for node in cluster.state().nodes if node.node == name]
    return status


def events(log, kind):
    """The events of this kind that are in the log."""
    found = []
    with log.open() as lines:
        for line in lines:
            event = json.loads(line)
            if event["event"] == kind:
                found.append(event)
    return found


def test_every_request_gets_the_logits_of_the_order_that_ran(served):
    runner, model, cluster, log = served
    images = pictures(20)

    async def submit():
        waiting = [asyncio.create_task(cluster.submit(batch)) for batch in images]
        await asyncio.sleep(0)
        # Six of them, the window, are being embedded: they don't wait any more, and aren't with nodes yet.
        assert cluster.waiting == 20 - 6
        assert cluster.state().in_flight == 0
        return await asyncio.gather(*waiting)

    results = runner.run(submit())
    check(model, images, results)
    assert len({result.order for result in results}) > 1
    assert sum(read_orders(str(log)).values()) == len(results)

    state = cluster.state()
    assert state.ended == 20
    assert state.failed == 0
    assert state.missed == 0
    assert state.in_flight == 0
    assert [node.steps for node in state.nodes] == HELD


def test_nobody_else_can_reach_it(served):
    """The processes of Ray, which are children of this one, listen on loopback alone."""
    listening_sockets = []
    for process in psutil.Process().children(recursive=True):
        listening_sockets += [socket for socket in process.net_connections() if socket.status == "LISTEN"]
    # Each node has one, and so have Ray's own processes.
    assert len(listening_sockets) > len(HELD)
    # A socket of IPv6 writes an address of IPv4 with a prefix.
    assert {socket.laddr.ip.removeprefix("::ffff:") for socket in listening_sockets} == {"127.0.0.1"}


def test_a_model_that_is_too_large_is_refused(served, monkeypatch):
    runner, model, _, _ = served
    # 128 KiB, less than the weights of the small model take.
    monkeypatch.setattr("ray.cluster_resources", lambda: {"memory": 2**17, "CPU": 4.0})
    with pytest.raises(UserError, match=r"the nodes hold \d.* of weights, but the cluster has 0\.0 GiB"):
        runner.run(Cluster(model, HELD).__aenter__())


def test_a_stopped_node_is_passed_over_and_its_late_answer_dropped(served):
    runner, model, cluster, log = served
    stopped = processes(cluster)["node1"]
    images = pictures(8)

    async def submit():
        os.kill(stopped, signal.SIGSTOP)
        results = await asyncio.gather(*(cluster.submit(batch) for batch in images))
        assert status_of(cluster, "node1") == "suspected"

        # The node goes on, and answers what it was told before.
        os.kill(stopped, signal.SIGCONT)
        give_up_at = time.monotonic() + 10
        while cluster.router.late == 0 and time.monotonic() < give_up_at:
            await asyncio.sleep(0.05)
        return results

    results = runner.run(submit())
    check(model, images, results)
    assert cluster.router.late == 1
    assert len(events(log, "late")) == 1
    assert status_of(cluster, "node1") == "idle"


def test_several_layers_run_at_a_time_and_the_logits_are_those_of_the_recorded_order(served):
    """Nodes read states that are some results old; one of them is stopped, and its step counts once."""
    runner, model, cluster, log = served
    ended_before = len(events(log, "ended"))
    images = pictures(24)

    async def submit():
        with policy_of(cluster, width=3):
            # Eight requests one after the other, which have all nodes for themselves, and then the others together.
            alone = [await cluster.submit(batch) for batch in images[:8]]

            os.kill(processes(cluster)["node0"], signal.SIGSTOP)
            together = await asyncio.gather(*(cluster.submit(batch) for batch in images[8:]))
            os.kill(processes(cluster)["node0"], signal.SIGCONT)
            return alone + together

    results = runner.run(submit())
    check(model, images, results)
    # Of three layers that start on the same state, the one that ends last has seen two other results come.
    assert all(result.order.longest_lag >= 2 for result in results[:8])

    recorded = [event["order"] for event in events(log, "ended")[ended_before:]]
    assert sorted(recorded) == sorted(str(result.order) for result in results)


def test_a_request_is_at_as_many_nodes_at_a_time_as_the_policy_allows(served, monkeypatch):
    """Messages take 50 ms more, so that the layers that can run at a time do."""
    runner, _, cluster, _ = served
    send = Dispatcher._send

    under_way = 0
    most_under_way = 0

    async def send_slowly(*arguments):
        nonlocal under_way, most_under_way
        under_way += 1
        most_under_way = max(most_under_way, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1
        return await send(*arguments)

    monkeypatch.setattr(Dispatcher, "_send", send_slowly)
    (images,) = pictures(1)
    for width in (1, 2, 3):
        most_under_way = 0
        with policy_of(cluster, width=width):
            # Which of several idle nodes gets which layer decides whether all layers find one.
            for _ in range(10):
                runner.run(cluster.submit(images))
        assert most_under_way == width


def test_requests_are_answered_in_time_with_what_has_come(served):
    """The holders of two layers are stopped, so these layers are missing; their changes come later, and are dropped."""
    runner, model, cluster, log = served
    images = pictures(6)
    late_before = len(events(log, "late"))

    async def submit():
        # All that hold layer 1 or 2.
        stopped = [processes(cluster)[name] for name in ("node0", "node1", "node2")]
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        with policy_of(cluster, width=4, answer_by=0.6):
            begun = time.monotonic()
            results = await asyncio.gather(*(cluster.submit(batch) for batch in images))
            seconds = time.monotonic() - begun

        # Now they answer, each what it was told, which is too late.
        for process in stopped:
            os.kill(process, signal.SIGCONT)
        async with asyncio.timeout(10):
            while len(events(log, "late")) < late_before + 3:
                await asyncio.sleep(0.05)
        return results, seconds

    results, seconds = runner.run(submit())
    # Without ``answer_by`` the requests would wait for the nodes, which go on only after them.
    assert 0.6 <= seconds < 10
    for batch, result in zip(images, results, strict=True):
        missed = set(result.missed)
        assert missed.issuperset({1, 2})
        assert result.order.layers == {0, 1, 2, 3} - missed
        with torch.inference_mode():
            assert torch.equal(result.logits, model(batch, result.order).logits)
    assert cluster.router.late == len(events(log, "late"))
    assert cluster.waiting == 0
    assert cluster.state().in_flight == 0


@pytest.mark.parametrize(
    ("wire", "share", "tolerance"), [("float32", 1, 0), ("bf16", 0.5, 0.05), ("int8", 9 / 32, 0.1)]
)
def test_what_travels_is_counted(served, wire, share, tolerance):
    """Each of four steps takes a state to a node, and one back.

    The share is that of the bytes of float32. With int8, each token of 32 numbers has a scale of 4 bytes: 36 of 128.
    """
    runner, model, cluster, log = served
    (images,) = pictures(1)
    cluster.dispatcher.wire = wire
    before = cluster.state()
    try:
        result = runner.run(cluster.submit(images))
    finally:
        cluster.dispatcher.wire = "float32"

    tokens = model.embed(images).tokens
    assert result.bytes == pytest.approx(4 * 2 * share * tokens.nbytes, rel=0.01)
    assert result.bytes == events(log, "ended")[-1]["bytes"]
    assert result.bytes == cluster.state().bytes - before.bytes
    assert cluster.state().runs - before.runs == 4
    with torch.inference_mode():
        expected = model(images, result.order).logits
    assert (result.logits - expected).abs().max() <= tolerance * expected.std()


def test_killed_nodes_lose_nothing_and_their_layers_are_loaded_elsewhere(served):
    """node2 and node3 are the holders of layer 3: after they are killed another node has it."""
    runner, model, cluster, log = served
    images = pictures(40)

    async def submit():
        waiting = [asyncio.create_task(cluster.submit(batch)) for batch in images]
        for name in ("node2", "node3"):
            await asyncio.sleep(0.05)
            os.kill(processes(cluster)[name], signal.SIGKILL)
        return await asyncio.gather(*waiting)

    results = runner.run(submit())
    check(model, images, results)
    assert {event["node"] for event in events(log, "lost")} == {"node2", "node3"}
    assert [event["step"] for event in events(log, "loaded")] == [3]
    ended = [event["request"] for event in events(log, "ended")]
    assert len(ended) == len(set(ended))


def test_a_node_joins_again_unless_its_weights_differ(served, small):
    runner, model, cluster, log = served
    # The same weights, but for a small change in layer 2.
    other = small(position="encode", num_classes=5)
    with torch.no_grad():
        other.layers[2].mlp.fc1.weight[0, 0] += 1e-3
    images = pictures(8)

    async def join():
        worker = cluster.dispatcher.workers["node0"]
        await worker.hold.remote(2, part_for(other, other.order[2]), other.order[2])
        with pytest.raises(UserError, match="its weights of step 2 aren't those"):
            await cluster.join("another", worker, [2])

        await worker.hold.remote(2, part_for(model, model.order[2]), model.order[2])
        await cluster.join("another", worker, [2])
        # The second time, it replaces itself.
        await cluster.join("another", worker, [2])
        return await asyncio.gather(*(cluster.submit(batch) for batch in images))

    results = runner.run(join())
    check(model, images, results)
    assert [node.steps for node in cluster.state().nodes if node.node == "another"] == [[2]]
    # The four nodes at the beginning, and the two times here.
    assert len(events(log, "joined")) == 4 + 2


def test_wrong_images_and_callers_that_go(served):
    runner, model, cluster, _ = served
    with pytest.raises(UserError, match=r"the model takes \[1 or more, 1, 8, 8\]"):
        runner.run(cluster.submit(torch.zeros(1, 3, 8, 8)))

    images = pictures(10)

    async def vanish():
        waiting = [asyncio.create_task(cluster.submit(batch)) for batch in images]
        await asyncio.sleep(0.02)
        # Every other caller goes.
        for task in waiting[::2]:
            task.cancel()
        return await asyncio.gather(*waiting[1::2])

    results = runner.run(vanish())
    check(model, images[1::2], results)
    assert cluster.waiting == 0
    assert cluster.state().in_flight == 0


def test_the_http_server(served):
    """Pictures in by HTTP, classes out: as the model itself says; and what is refused, with a sentence."""
    runner, model, cluster, _ = served
    loaded = LoadedModel(model, info_of(model), class_names=["ant", "bee", "cow", "doe", "elk"])
    picture = Image.fromarray(torch.randint(256, (20, 20), dtype=torch.uint8).numpy())
    content = png(picture)

    async def talk():
        app = HttpServer(cluster, loaded, "secret", most_waiting=2, top=2).application()
        async with TestClient(TestServer(app), headers={"Authorization": "Bearer secret"}) as client:

            async def ask(method, path, **request):
                async with client.request(method, path, **request) as answer:
                    return answer.status, await answer.text()

            # More at once than run and wait.
            answers = await asyncio.gather(*(ask("POST", "/predict", data=content) for _ in range(20)))
            refused = [
                await ask("GET", "/state", headers={"Authorization": "Bearer wrong"}),
                await ask("POST", "/predict", data=b"nonsense"),
                await ask("POST", "/predict", data=b"x" * (MAX_BYTES + 1)),
            ]
            state = await ask("GET", "/state")
            page = await ask("GET", "/", headers={"Authorization": ""})
            return answers, refused, state, page

    answers, refused, (_, state), (page_status, page) = runner.run(talk())

    assert [status for status, _ in refused] == [401, 400, 413]
    for _, text in refused:
        assert text.count("\n") == 1
        assert " " in text
    _, nonsense = refused[1]
    assert "format" in nonsense  # and not the name of a file, as Pillow says it

    assert {status for status, _ in answers} == {200, 429}
    for status, text in answers:
        if status == 200:
            answer = json.loads(text)
            (expected,) = loaded.predict([picture], top=2, order=answer["order"])
            for named, likely in zip(answer["classes"], expected, strict=True):
                assert named["class"] == likely.name
                assert named["probability"] == pytest.approx(likely.probability, abs=1e-6)

    assert json.loads(state).keys() == cluster.state().to_json().keys()
    assert page_status == 200
    assert "<!doctype html>" in page
    assert status_table(cluster.state()).renderables[0].row_count == len(cluster.state().nodes)


def test_a_client_that_vanishes(served):
    """Its request ends once, nobody computes for it any more, and others get their answers."""
    runner, model, cluster, log = served
    content = png(Image.new("L", (20, 20)))
    ended_before = len(events(log, "ended"))

    async def talk():
        app = HttpServer(cluster, LoadedModel(model, info_of(model)), "secret").application()
        # All nodes are stopped, so that the request still runs when its client goes.
        for process in processes(cluster).values():
            os.kill(process, signal.SIGSTOP)
        token = {"Authorization": "Bearer secret"}
        async with listening(app, "127.0.0.1", 0) as address, ClientSession(address, headers=token) as client:
            with pytest.raises(TimeoutError):
                await client.post("/predict", data=content, timeout=ClientTimeout(0.5))
            async with asyncio.timeout(5):  # long before its deadline
                while cluster.state().in_flight:
                    await asyncio.sleep(0.01)

            for process in processes(cluster).values():
                os.kill(process, signal.SIGCONT)
            async with client.post("/predict", data=content) as answer:
                assert answer.status == 200

    runner.run(talk())
    assert cluster.waiting == 0
    assert cluster.state().in_flight == 0
    assert [event["failed"] for event in events(log, "ended")[ended_before:]] == [True, False]


def test_ray_is_told_what_the_log_says(served, metrics):
    """The tests before this one have left some of each in the log."""
    _, _, cluster, log = served
    answered = [event for event in events(log, "ended") if not event["failed"]]
    failed = [event for event in events(log, "ended") if event["failed"]]
    lost = events(log, "lost")
    late = events(log, "late")
    for found in (failed, lost, late):
        assert found

    assert metrics["layershuffle_requests_ended"] == len(answered) == cluster.state().ended
    assert metrics["layershuffle_requests_failed"] == len(failed)
    assert metrics["layershuffle_request_seconds"] == pytest.approx(sum(event["seconds"] for event in answered))
    assert metrics["layershuffle_nodes_lost"] == len(lost)
    assert metrics["layershuffle_late_answers"] == len(late)


def test_missed_layers_are_counted(metrics):
    before = metrics["layershuffle_layers_missed"]
    ended = Ended(request=1, order=Order([2, 0]), missed=(1, 3), seconds=0.5, failed=False)
    with EventLog(None, Metrics().count) as log:
        log.ended(ended, 0)
    assert metrics["layershuffle_layers_missed"] == before + 2


def test_without_any_node_requests_fail_at_their_deadline(served):
    """This one comes last: no node is left after it."""
    runner, _, cluster, log = served
    failed_before = cluster.state().failed
    ended_before = len(events(log, "ended"))

    async def submit():
        for process in processes(cluster).values():
            os.kill(process, signal.SIGKILL)
        cluster.router.policy = replace(cluster.policy, request_deadline=1.0)
        errors = await asyncio.gather(*(cluster.submit(batch) for batch in pictures(3)), return_exceptions=True)
        assert all("too few nodes are left" in str(error) for error in errors)

        # On a busy machine, Ray may tell of a death only after the requests' deadline.
        async with asyncio.timeout(60):
            while {node.status for node in cluster.state().nodes} != {"gone"}:
                await asyncio.sleep(0.1)

    runner.run(submit())
    assert cluster.state().failed == failed_before + 3
    assert [event["failed"] for event in events(log, "ended")[ended_before:]] == [True, True, True]


def test_a_log_is_whole_after_its_writer_is_killed(tmp_path):
    """All that was written is there, in whole lines, and half a line is removed before more is written."""
    path = tmp_path / "log"
    code = f"""
from layershuffle.serving.event_log import EventLog
log = EventLog({str(path)!r})
for number in range(10**9):
    log.write("counted", number, long="x" * 300)
    print(number, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    # It has written and printed 0 to 99 at least, and perhaps more until it is killed.
    for _ in range(100):
        writer.stdout.readline()
    writer.kill()
    printed = [int(line) for line in writer.stdout.read().split()]

    # A kill can cut the last line where a page of memory ends. Whoever opens the log next removes what is left of it.
    EventLog(path).close()
    numbers = [event["time"] for event in events(path, "counted")]
    assert all(after == before + 1 for before, after in pairwise(numbers))
    assert numbers[-1] >= max(printed, default=99)

    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"event": "half')
    with EventLog(path) as log:
        log.write("after", 0)
    assert path.read_text() == whole + '{"time": 0, "event": "after"}\n'


def test_a_full_disk_ends_the_log_and_nothing_else(tmp_path, monkeypatch, caplog):
    path = tmp_path / "log"
    write = os.write
    with EventLog(path) as log:
        log.write("before", 0)
        # Of each further line, only five bytes fit.
        monkeypatch.setattr("os.write", lambda file, line: write(file, line[:5]))
        log.write("half", 1)
        log.write("after", 2)

    assert path.read_text() == '{"time": 0, "event": "before"}\n'
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert str(path) in warning.getMessage()


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (1, 6), (4, 6), (8, 6), (1, 3), (2, 7)])
def test_all_nodes_fit_on_the_gpus(gpus, nodes):
    share = gpu_share("gpu", gpus, nodes)
    assert 0 < share <= 1
    nodes_on_a_gpu = int(1 / share)
    assert gpus * nodes_on_a_gpu >= nodes
    assert gpu_share("auto", gpus, nodes) == share
    assert gpu_share("cpu", gpus, nodes) == 0


def test_a_cluster_without_a_gpu(small):
    assert gpu_share("auto", 0, 3) == 0
    with pytest.raises(UserError, match="no GPU"):
        gpu_share("gpu", 0, 3)
    with pytest.raises(UserError, match="mps"):
        Cluster(small(), 2, accelerator="mps")


def test_layers_are_spread_over_nodes():
    assert spread(2, 5) == [[0, 1, 2], [0, 3, 4]]
    assert spread(7, 3) == [[0], [1], [2], [0], [1], [2], [0]]
    for nodes in range(1, 9):
        held = set()
        for steps in spread(nodes, 6):
            held.update(steps)
        assert held == set(range(6))
    with pytest.raises(UserError):
        spread(0, 3)


def test_a_placement_that_cannot_be_is_refused(small):
    with pytest.raises(UserError, match="no node holds step 3"):
        Cluster(small(), [[0, 1], [1, 2]])
    with pytest.raises(UserError, match="only steps 0 to 3"):
        Cluster(small(), [[0, 1, 2, 3, 4]])


def test_an_unknown_form_of_what_travels_is_refused(small):
    with pytest.raises(UserError, match="float32, bf16, int8"):
        Cluster(small(), 2, wire="fp8")


def test_a_base_order_that_reads_older_states_is_refused(small):
    with pytest.raises(UserError, match="reads older states"):
        Cluster(small(order="0 1<1 2 3"), 2)


def test_a_cluster_that_is_not_there(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"there is no Ray cluster at 127\.0\.0\.1:1: "):
        connect("127.0.0.1:1", 1)


def test_what_cannot_be_served_is_refused(tmp_path, capsys):
    """A log that is some other file is refused before anything is started, and left as it is."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(UserError, match="is not an event log"):
        EventLog(path)
    assert path.read_text() == "my notes"
    assert "there is no file" in fails(capsys, serve_command, str(tmp_path / "none.ckpt"))
    assert "routing" in fails(capsys, serve_command, "none.ckpt", "--routing", "fast")
