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


def one_model():
    """A model that encodes positions, with weights far from their initial symmetry."""
    torch.set_num_threads(1)  # as in the nodes: the number of threads decides how sums are rounded
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

    # So many that some still run when the loss is noticed.
    model, log, images = one_model(), tmp_path / "events.jsonl", pictures(200)
    one = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    machines = Machines(initialize_head=True, head_node_args=one | {"_system_config": SYSTEM_CONFIG})
    killed = machines.add_node(**one)

    async def submit():
        placement = [[0, 1], [2, 3]]
        async with Cluster(model, placement, address=machines.address, event_log=log, start_seconds=300) as cluster:
            waiting = [asyncio.create_task(cluster.submit(batch)) for batch in images]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            killed.all_processes["raylet"][0].process.kill()
            return time.time(), await asyncio.gather(*waiting)

    try:
        when, results = asyncio.run(submit())
    finally:
        machines.shutdown()
    check(model, images, results)
    (lost,) = events(log, "lost")
    assert lost["time"] < when + 5  # with Ray's own health checks it would be 15 s
    (held,) = (event["steps"] for event in events(log, "joined") if event["node"] == lost["node"])
    assert sorted(event["step"] for event in events(log, "loaded")) == held
    ended = events(log, "ended")
    assert sorted(event["request"] for event in ended) == [*range(1, len(images) + 1)]
    assert ended[0]["time"] <= lost["time"] <= ended[-1]["time"]


def recording(original, found):
    def record(metric, value=1):
        original(metric, value)
        found[metric.info["name"]] += value

    return record


@pytest.fixture(scope="module")
def metrics():
    """The sum of what was recorded of each of Ray's metrics, by its name."""
    found = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for kind, method in ((ray.util.metrics.Counter, "inc"), (ray.util.metrics.Histogram, "observe")):
            patch.setattr(kind, method, recording(getattr(kind, method), found))
        yield found


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
    return torch.randn(count, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def check(model, images, results):
    for batch, result in zip(images, results, strict=True):
        assert result.order.layers == {0, 1, 2, 3}
        assert len(result.order) == 4
        with torch.inference_mode():
            assert torch.equal(result.logits, model(batch, result.order).logits)


def processes(cluster):
    return {node.node: node.process for node in cluster.state().nodes if node.status != "gone"}


def info_of(model):
    return ModelInfo(name="small", source="test", config=model.config)


def status_of(cluster, name):
    return {node.node: node.status for node in cluster.state().nodes}[name]


def events(log, kind):
    return [event for event in map(json.loads, log.open()) if event["event"] == kind]


def test_every_request_gets_the_logits_of_the_order_that_ran(served):
    runner, model, cluster, log = served
    images = pictures(20)

    async def submit():
        waiting = [asyncio.create_task(cluster.submit(batch)) for batch in images]
        await asyncio.sleep(0)
        assert (cluster.waiting, cluster.state().in_flight) == (14, 0)  # those in the window are being embedded
        return await asyncio.gather(*waiting)

    results = runner.run(submit())
    check(model, images, results)
    assert len({result.order for result in results}) > 1
    assert sum(read_orders(str(log)).values()) == len(results)
    state = cluster.state()
    assert (state.ended, state.failed, state.missed, state.in_flight) == (20, 0, 0, 0)
    assert [node.steps for node in state.nodes] == HELD


def test_nobody_else_can_reach_it(served):
    """The processes of Ray, which are children of this one, listen on loopback alone."""
    ours = psutil.Process().children(recursive=True)
    sockets = [socket for process in ours for socket in process.net_connections() if socket.status == "LISTEN"]
    assert len(sockets) > len(HELD)
    assert {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets} == {"127.0.0.1"}


def test_a_model_that_is_too_large_is_refused(served, monkeypatch):
    runner, model, _, _ = served
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
        os.kill(stopped, signal.SIGCONT)
        before = time.monotonic()
        while cluster.router.late == 0 and time.monotonic() < before + 10:
            await asyncio.sleep(0.05)
        return results

    check(model, images, runner.run(submit()))
    assert cluster.router.late == len(events(log, "late")) == 1
    assert status_of(cluster, "node1") == "idle"


def test_several_layers_run_at_a_time_and_the_logits_are_those_of_the_recorded_order(served):
    """Nodes read states that are some results old; one of them is stopped, and its step counts once."""
    runner, model, cluster, log = served
    before = len(events(log, "ended"))
    images = pictures(24)

    async def submit():
        with policy_of(cluster, width=3):
            alone = [await cluster.submit(batch) for batch in images[:8]]
            os.kill(processes(cluster)["node0"], signal.SIGSTOP)
            together = await asyncio.gather(*(cluster.submit(batch) for batch in images[8:]))
            os.kill(processes(cluster)["node0"], signal.SIGCONT)
            return alone + together

    results = runner.run(submit())
    check(model, images, results)
    # Of three layers that start on the same state, the one that ends last has seen two other results come.
    assert all(result.order.longest_lag >= 2 for result in results[:8])
    assert sorted(event["order"] for event in events(log, "ended")[before:]) == sorted(str(r.order) for r in results)


def test_a_request_is_at_as_many_nodes_at_a_time_as_the_policy_allows(served, monkeypatch):
    """Messages take 50 ms more, so that the layers that can run at a time do."""
    runner, _, cluster, _ = served
    send = Dispatcher._send

    under_way = 0
    most = 0

    async def send_slowly(*arguments):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1
        return await send(*arguments)

    monkeypatch.setattr(Dispatcher, "_send", send_slowly)
    (images,) = pictures(1)
    for width in (1, 2, 3):
        most = 0
        with policy_of(cluster, width=width):
            # Which of several idle nodes gets which layer decides whether all layers find one.
            for _ in range(10):
                runner.run(cluster.submit(images))
        assert most == width


def test_requests_are_answered_in_time_with_what_has_come(served):
    """The holders of two layers are stopped, so these layers are missing; their changes come later, and are dropped."""
    runner, model, cluster, log = served
    images = pictures(6)
    late = len(events(log, "late"))

    async def submit():
        stopped = [processes(cluster)[name] for name in ("node0", "node1", "node2")]
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        with policy_of(cluster, width=4, answer_by=0.6):
            begun = time.monotonic()
            results = await asyncio.gather(*(cluster.submit(batch) for batch in images))
            seconds = time.monotonic() - begun
        for process in stopped:
            os.kill(process, signal.SIGCONT)
        async with asyncio.timeout(10):
            while len(events(log, "late")) < late + 3:
                await asyncio.sleep(0.05)
        return results, seconds

    results, seconds = runner.run(submit())
    # Without ``answer_by`` the requests would wait for the nodes, which go on only after them.
    assert 0.6 <= seconds < 10
    for batch, result in zip(images, results, strict=True):
        assert {1, 2} <= {*result.missed}
        assert result.order.layers == {0, 1, 2, 3} - {*result.missed}
        with torch.inference_mode():
            assert torch.equal(result.logits, model(batch, result.order).logits)
    assert cluster.router.late == len(events(log, "late"))
    assert (cluster.waiting, cluster.state().in_flight) == (0, 0)


@pytest.mark.parametrize(
    ("wire", "share", "tolerance"), [("float32", 1, 0), ("bf16", 0.5, 0.05), ("int8", 9 / 32, 0.1)]
)
def test_what_travels_is_counted(served, wire, share, tolerance):
    """Each of four steps takes a state to a node, and one back; int8 has a scale for each token of 32 numbers."""
    runner, model, cluster, log = served
    (images,) = pictures(1)
    cluster.dispatcher.wire = wire
    before = cluster.state()
    try:
        result = runner.run(cluster.submit(images))
    finally:
        cluster.dispatcher.wire = "float32"
    tokens = model.embed(images).tokens
    assert result.bytes == events(log, "ended")[-1]["bytes"] == pytest.approx(4 * 2 * share * tokens.nbytes, rel=0.01)
    assert (cluster.state().bytes - before.bytes, cluster.state().runs - before.runs) == (result.bytes, 4)
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

    check(model, images, runner.run(submit()))
    assert {event["node"] for event in events(log, "lost")} == {"node2", "node3"}
    assert [event["step"] for event in events(log, "loaded")] == [3]
    ended = [event["request"] for event in events(log, "ended")]
    assert len(ended) == len(set(ended))


def test_a_node_joins_again_unless_its_weights_differ(served, small):
    runner, model, cluster, log = served
    other = small(position="encode", num_classes=5)
    with torch.no_grad():
        other.layers[2].mlp.fc1.weight[0, 0] += 1e-3

    async def join():
        actor = cluster.dispatcher.workers["node0"]
        await actor.hold.remote(2, part_for(other, other.order[2]), other.order[2])
        with pytest.raises(UserError, match="its weights of step 2 aren't those"):
            await cluster.join("another", actor, [2])
        await actor.hold.remote(2, part_for(model, model.order[2]), model.order[2])
        await cluster.join("another", actor, [2])
        await cluster.join("another", actor, [2])
        return await asyncio.gather(*(cluster.submit(batch) for batch in pictures(8)))

    check(model, pictures(8), runner.run(join()))
    assert [node.steps for node in cluster.state().nodes if node.node == "another"] == [[2]]
    assert len(events(log, "joined")) == 4 + 2


def test_wrong_images_and_callers_that_go(served):
    runner, model, cluster, _ = served
    with pytest.raises(UserError, match=r"the model takes \[1 or more, 1, 8, 8\]"):
        runner.run(cluster.submit(torch.zeros(1, 3, 8, 8)))

    async def vanish():
        waiting = [asyncio.create_task(cluster.submit(batch)) for batch in pictures(10)]
        await asyncio.sleep(0.02)
        for task in waiting[::2]:
            task.cancel()
        return await asyncio.gather(*waiting[1::2])

    check(model, pictures(10)[1::2], runner.run(vanish()))
    assert (cluster.waiting, cluster.state().in_flight) == (0, 0)


def test_the_http_server(served):
    """Pictures in by HTTP, classes out: as the model itself says; and what is refused, with a sentence."""
    runner, model, cluster, _ = served
    loaded = LoadedModel(model, info_of(model), class_names=["ant", "bee", "cow", "doe", "elk"])
    picture = Image.fromarray(torch.randint(256, (20, 20), dtype=torch.uint8).numpy())
    content = io.BytesIO()
    picture.save(content, "PNG")

    async def talk():
        app = HttpServer(cluster, loaded, "secret", most_waiting=2, top=2).application()
        async with TestClient(TestServer(app), headers={"Authorization": "Bearer secret"}) as client:

            async def ask(method, path, **request):
                async with client.request(method, path, **request) as answer:
                    return answer.status, await answer.text()

            asked = [ask("POST", "/predict", data=content.getvalue()) for _ in range(20)]
            answers = await asyncio.gather(*asked)
            refused = [
                await ask("GET", "/state", headers={"Authorization": "Bearer wrong"}),
                await ask("POST", "/predict", data=b"nonsense"),
                await ask("POST", "/predict", data=b"x" * (MAX_BYTES + 1)),
            ]
            return answers, refused, await ask("GET", "/state"), await ask("GET", "/", headers={"Authorization": ""})

    answers, refused, state, page = runner.run(talk())
    assert [status for status, _ in refused] == [401, 400, 413]
    assert all(text.count("\n") == 1 and " " in text for _, text in refused)
    assert "format" in refused[1][1]  # and not the name of a file, as Pillow says it
    assert {status for status, _ in answers} == {200, 429}
    for status, text in answers:
        if status == 200:
            found = json.loads(text)
            (expected,) = loaded.predict([picture], top=2, order=found["order"])
            assert [(each["class"], each["probability"]) for each in found["classes"]] == [
                (likely.name, pytest.approx(likely.probability, abs=1e-6)) for likely in expected
            ]
    assert json.loads(state[1]).keys() == cluster.state().to_json().keys()
    assert (page[0], "<!doctype html>" in page[1]) == (200, True)
    assert status_table(cluster.state()).renderables[0].row_count == len(cluster.state().nodes)


def test_a_client_that_vanishes(served):
    """Its request ends once, nobody computes for it any more, and others get their answers."""
    runner, model, cluster, log = served
    content = io.BytesIO()
    Image.new("L", (20, 20)).save(content, "PNG")
    before = len(events(log, "ended"))

    async def talk():
        app = HttpServer(cluster, LoadedModel(model, info_of(model)), "secret").application()
        for process in processes(cluster).values():
            os.kill(process, signal.SIGSTOP)  # so that the request still runs when its client goes
        token = {"Authorization": "Bearer secret"}
        async with listening(app, "127.0.0.1", 0) as address, ClientSession(address, headers=token) as client:
            with pytest.raises(TimeoutError):
                await client.post("/predict", data=content.getvalue(), timeout=ClientTimeout(0.5))
            async with asyncio.timeout(5):  # long before its deadline
                while cluster.state().in_flight:
                    await asyncio.sleep(0.01)
            for process in processes(cluster).values():
                os.kill(process, signal.SIGCONT)
            async with client.post("/predict", data=content.getvalue()) as answer:
                assert answer.status == 200

    runner.run(talk())
    assert (cluster.waiting, cluster.state().in_flight) == (0, 0)
    assert [event["failed"] for event in events(log, "ended")[before:]] == [True, False]


def test_ray_is_told_what_the_log_says(served, metrics):
    _, _, cluster, log = served
    ended = [event for event in events(log, "ended") if not event["failed"]]
    assert metrics["layershuffle_requests_ended"] == len(ended) == cluster.state().ended
    assert metrics["layershuffle_requests_failed"] == len(events(log, "ended")) - len(ended) > 0
    assert metrics["layershuffle_request_seconds"] == pytest.approx(sum(event["seconds"] for event in ended))
    assert metrics["layershuffle_nodes_lost"] == len(events(log, "lost")) > 0
    assert metrics["layershuffle_late_answers"] == len(events(log, "late")) > 0


def test_missed_layers_are_counted(metrics):
    before = metrics["layershuffle_layers_missed"]
    with EventLog(None, Metrics().count) as log:
        log.ended(Ended(1, Order([2, 0]), (1, 3), 0.5, failed=False), 0)
    assert metrics["layershuffle_layers_missed"] == before + 2


def test_without_any_node_requests_fail_at_their_deadline(served):
    """This one comes last: no node is left after it."""
    runner, _, cluster, log = served
    failed, before = cluster.state().failed, len(events(log, "ended"))

    async def submit():
        for process in processes(cluster).values():
            os.kill(process, signal.SIGKILL)
        cluster.router.policy = replace(cluster.policy, request_deadline=1.0)
        found = await asyncio.gather(*(cluster.submit(batch) for batch in pictures(3)), return_exceptions=True)
        assert all("too few nodes are left" in str(error) for error in found)
        # On a busy machine, Ray may tell of a death only after the requests' deadline.
        async with asyncio.timeout(60):
            while {node.status for node in cluster.state().nodes} != {"gone"}:
                await asyncio.sleep(0.1)

    runner.run(submit())
    assert cluster.state().failed == failed + 3
    assert [event["failed"] for event in events(log, "ended")[before:]] == [True] * 3


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
    for _ in range(100):
        writer.stdout.readline()
    writer.kill()
    printed = [int(line) for line in writer.stdout.read().split()]
    # A kill can cut the last line where a page of memory ends. Whoever opens the log next removes what is left of it.
    EventLog(path).close()
    times = [event["time"] for event in events(path, "counted")]
    assert all(after == before + 1 for before, after in pairwise(times))
    assert times[-1] >= max(printed, default=99)
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"event": "half')
    with EventLog(path) as log:
        log.write("after", 0)
    assert path.read_text() == whole + '{"time": 0, "event": "after"}\n'


def test_a_full_disk_ends_the_log_and_nothing_else(tmp_path, monkeypatch, caplog):
    path, write = tmp_path / "log", os.write
    with EventLog(path) as log:
        log.write("before", 0)
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
    assert gpus * int(1 / share) >= nodes
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
        assert {index for held in spread(nodes, 6) for index in held} == set(range(6))
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
