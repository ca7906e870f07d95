"""Files from strangers: each reader says in one sentence why it doesn't take them, and takes no memory for them."""

import contextlib
import io
import json
import os
import pickle
import sys
import tarfile
import time
import tracemalloc
import zipfile

import pytest
import safetensors.torch
import torch
import torchvision
import yaml
from helpers import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import layershuffle
from layershuffle import files as reading
from layershuffle.checkpoints.loading import load
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.commands.parser import Parser
from layershuffle.data import DataConfig, TorchvisionImages, from_config
from layershuffle.errors import UserError
from layershuffle.experiments.definition import Experiment
from layershuffle.models.create import create_model
from layershuffle.models.state_dicts import AVERAGED_ENTRIES, RAW_ENTRIES
from layershuffle.models.weights import MAX_TENSORS, read_backbone, read_file
from layershuffle.orders.order import MAX_STEPS, Order
from layershuffle.report.collect import collect, read_files
from layershuffle.results import DataInfo, Environment, EvaluationInfo, ModelInfo, Results, Score

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MEGABYTE = 1 << 20
GIGABYTE = 1 << 30


def whole_results():
    """Results in which nothing is wrong, with one score."""
    score = Score("pruned", {"kept": 2}, order="0 1", images=10, top1=0.5, top5=0.9, loss=1.5, position_accuracy=None)
    config = {"name": "vit_tiny_patch16_224", "num_classes": 10}
    model = ModelInfo(name="best", method="baseline", seed=0, config=config)
    data = DataInfo(name="Digits", images=10, split="test")
    return Results(model, data, EvaluationInfo(random_orders=1), Environment(torch="2"), [score])


def checkpoint(path, **changed):
    """Save a checkpoint of a small model, whose record of the model is changed so; returns the path."""
    config = {"name": "vit_tiny_patch16_224", "num_classes": 10, "position": "encode", **SMALL}
    model = create_model(**config)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, METADATA_KEY: {"model": config | changed}}, path)
    return path


def memory_and_complaint(call):
    """The most memory that Python took during a call that must raise a UserError, in bytes, and what that said."""
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        call()
    _now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most, str(error.value)


# --- Text ---------------------------------------------------------------------------------------------------


def test_a_results_file_of_10_gb_is_not_read(tmp_path):
    path = tmp_path / "results.json"
    with path.open("wb") as file:
        file.truncate(10 * GIGABYTE)  # a hole, which takes no disk

    memory, complaint = memory_and_complaint(lambda: reading.read_json(path, most=MEGABYTE))
    assert "has more than 1,048,576 bytes" in complaint
    assert memory < 8 * MEGABYTE

    assert reading.MAX_JSON_BYTES < GIGABYTE
    with pytest.raises(UserError, match="there are no results in .*: name a results file"):
        layershuffle.write_report(tmp_path)


def experiment_parser():
    """What reads the configuration of an experiment from files."""
    parser = Parser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Experiment, "experiment")
    return parser


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "is not a results file or is damaged"),
        ("\ud800", "is not a results file or is damaged"),
        ("{", "is not a results file or is damaged"),
        ("[]", "not a results file of this version"),
    ],
)
def test_json_that_is_no_results_file(tmp_path, text, complaint):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=complaint):
        Results.load(path)


def aliases_of_aliases():
    """A YAML file of 12 lines, which would become nine times as large with each: some 10^11 values (a "bomb")."""
    lines = ["a0: &a0 [x, x]"]
    for number in range(1, 12):
        nine_aliases = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} [{nine_aliases}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 5000, "nested too deeply"),
        ("!!python/object/apply:os.system [true]", "is not YAML"),
        ("x" * (reading.MAX_YAML_BYTES + 1), "has more than"),
        ("? [a]\n: b", "is not YAML"),
        (aliases_of_aliases(), "aliases"),
        ("a: &a [*a]", "aliases"),
    ],
    ids=["deep", "code", "large", "key", "bomb", "circle"],
)
def test_configs_that_are_none(tmp_path, text, complaint):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        experiment_parser().parse_args([f"--config={path}"])
    with pytest.raises(UserError, match=complaint):
        reading.read_yaml(path)


def test_results_with_values_that_cannot_be(tmp_path):
    path = tmp_path / "results.json"
    whole_results().save(path)
    assert Results.load(path) == whole_results()
    content = json.loads(path.read_text())

    (columns,) = content["scores"]  # those of one protocol and variant
    for change in (
        {"images": [-1]},
        {"images": ["ten"]},
        {"top1": [7.0]},
        {"top1": [None]},
        {"loss": [float("nan")]},
        {"order": [{"a": 1}]},
        {"protocol": ["pruned"]},
        {"variant": {"kept": [1]}},
        {"variant": {}},
    ):
        path.write_text(json.dumps(content | {"scores": [columns | change]}))
        with pytest.raises(UserError, match="is not a whole results file"):
            Results.load(path)

    for change in ({"model": []}, {"model": {}}, {"data": {}}, {"evaluation": 1}, {"more": 1}):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match="is not a whole results file"):
            Results.load(path)


def test_a_report_leaves_out_what_is_no_results_file(tmp_path):
    whole_results().save(tmp_path / "good.json")
    content = json.loads((tmp_path / "good.json").read_text())
    content["model"] = {"name": "x", "config": {"name": ["y"]}}
    (tmp_path / "bad.json").write_text(json.dumps(content))

    setups, complaints = collect(read_files(tmp_path))

    assert [list(setup.files) for setup in setups] == [["good.json"]]
    assert len(complaints) == 1


# --- Weights ------------------------------------------------------------------------------------------------


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 * MEGABYTE))

    memory, complaint = memory_and_complaint(lambda: read_file(path))

    assert "would unpack to 67,108,864 bytes, more than its size" in complaint
    assert memory < 8 * MEGABYTE


def safetensors_file(header, length_of_header=None, values=b""):
    """The bytes of a file in the format of safetensors, which can lie about the length of its header."""
    if length_of_header is None:
        length_of_header = len(header)
    return length_of_header.to_bytes(8, "little") + header + values


def test_tensors_that_claim_more_than_there_is_are_refused(tmp_path):
    path = tmp_path / "claims.pth"
    torch.save({"head": {"weight": [torch.zeros(1).expand(10**12)]}}, path)
    with pytest.raises(UserError, match=r"tensor of shape \(1000000000000,\), but not the values of all of it"):
        read_file(path)

    torch.save({"weight": torch.eye(3).to_sparse()}, path)
    with pytest.raises(UserError, match="which no weights are"):
        read_file(path)

    path = tmp_path / "claims.safetensors"
    tensor = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    header = json.dumps({"w": tensor}).encode()
    for length_of_header in (len(header), 1 << 60):
        path.write_bytes(safetensors_file(header, length_of_header))
        with pytest.raises(UserError, match="is not a checkpoint or is damaged"):
            read_file(path)


def save_as_older_torch(content, path):
    """Save as torch before 1.6 did."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def test_files_of_older_torch_are_read(tmp_path):
    path = checkpoint(tmp_path / "good.ckpt")
    old_path = tmp_path / "old.ckpt"
    save_as_older_torch(torch.load(path), old_path)

    weights = load(str(old_path)).model.state_dict()
    for name, expected in load(str(path)).model.state_dict().items():
        assert torch.equal(weights[name], expected)


@pytest.mark.parametrize("save", [torch.save, save_as_older_torch], ids=["zip", "legacy"])
@pytest.mark.parametrize("views", [True, False], ids=["views", "tensors"])
def test_more_tensors_than_any_model_has_are_refused_at_once(tmp_path, save, views):
    path = tmp_path / "many.pth"
    tensors = {}
    for number, value in enumerate(torch.zeros(MAX_TENSORS + 1)):
        tensors[str(number)] = value if views else value.clone()
    save(tensors, path)

    with pytest.raises(UserError, match="has more tensors or other values than any model"):
        read_file(path)


@pytest.mark.parametrize("numel", [2**31 - 1, 2**62])
def test_storages_of_older_torch_that_claim_more_than_there_is_are_refused(tmp_path, numel):
    """One is listed to be read, and so can't be; the other isn't, and would keep whatever is in the memory."""
    path = tmp_path / "claims.pth"
    save_as_older_torch({"weight": torch.zeros(12345)}, path)
    content = path.read_bytes()

    # The pickle opcodes of an integer of two bytes (BININT2) and of one of any length (LONG1), here of 8 bytes.
    true_size = b"M" + (12345).to_bytes(2, "little")
    claimed_size = b"\x8a" + b"\x08" + numel.to_bytes(8, "little")
    assert true_size in content
    larger = content.replace(true_size, claimed_size)
    path.write_bytes(larger)
    with pytest.raises(UserError, match="is damaged"):
        read_file(path)

    # A pickled list at the end says which storages follow it.
    start_of_list = larger.rindex(b"\x80\x02]")
    (key,) = pickle.loads(larger[start_of_list:])
    unlisted = larger[:start_of_list] + pickle.dumps([], protocol=2)
    assert key.encode() in unlisted
    path.write_bytes(unlisted)
    with pytest.raises(UserError, match="is damaged|not the values"):
        read_file(path)


def test_entries_that_hold_the_same_entries_again_and_again_take_no_time(tmp_path):
    path = tmp_path / "wrapped.pth"
    # Each entry that may hold weights holds such entries itself, and so on, eight levels deep.
    nested = {"state_dict": 1}
    for _ in range(8):
        nested = dict.fromkeys((*RAW_ENTRIES, *AVERAGED_ENTRIES), nested)
    circle = {}
    circle["model"] = circle["module"] = circle["net"] = circle

    for content in (nested, circle):
        torch.save(content, path)
        with pytest.raises(UserError, match="holds no state dict"):
            read_backbone(path)


MANY_TENSORS = {str(number): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)}


def with_second_tensor(name, start, end):
    """A file in the format of safetensors with a tensor of 4 bytes named "w", and another of this name and place."""
    first = '"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    second = f'"{name}": {{"dtype": "F32", "shape": [1], "data_offsets": [{start}, {end}]}}'
    return safetensors_file(f"{{{first}, {second}}}".encode(), values=bytes(end))


def complaint_at_once(read, path):
    """What a UserError says when a file is read: one line, after less than a second."""
    start = time.process_time()
    with pytest.raises(UserError) as error:
        read(path)
    assert time.process_time() - start < 1
    complaint = str(error.value)
    assert "\n" not in complaint
    return complaint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(1000),
        safetensors_file(b"{}", 1 << 62),
        safetensors_file(b"{}", (1 << 64) - 1),
        safetensors_file(b"[1, 2]"),
        safetensors_file(b'{"w":' + b"[" * 100_000),
        with_second_tensor("v", 2, 6),
        with_second_tensor("v", 6, 10),
        with_second_tensor("w", 4, 8),
        safetensors_file(json.dumps(MANY_TENSORS).encode()),
        safetensors_file(b"{}" + b" " * (100 * MEGABYTE)),
    ],
    ids=["empty", "zeros", "huge", "negative", "list", "deep", "overlap", "gap", "twice", "many", "long"],
)
def test_safetensors_that_are_none_are_refused_at_once(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "model.safetensors" in complaint_at_once(load, path)


def test_files_that_are_no_checkpoints_are_refused_at_once(tmp_path):
    """Cut short, full of holes, archives of something else, or no files at all."""
    whole = checkpoint(tmp_path / "whole.ckpt").read_bytes()
    cut = [f"cut{part}" for part in range(20)]
    for part, name in enumerate(cut):
        (tmp_path / name).write_bytes(whole[: len(whole) * part // 20])
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(200 * GIGABYTE)
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(tmp_path / "whole.ckpt")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("notes.txt", "no weights")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    too_long_a_name = "x" * 5000

    names = [*cut, "holes", "tar", "zip", "module", "pipe", "folder", "link", "circle", too_long_a_name]
    paths = [tmp_path / name for name in names]
    paths += ["/dev/zero", "", " ", "https://127.0.0.1:9/model.ckpt"]
    for path in paths:
        for read in (load, read_backbone):
            complaint_at_once(read, path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, dtype):
    """torch would round them, or take their real part."""
    path = checkpoint(tmp_path / "model.ckpt")
    content = torch.load(path)
    name = "model.vit.blocks.0.attn.qkv.weight"
    content["state_dict"][name] = content["state_dict"][name].to(dtype)
    torch.save(content, path)
    with pytest.raises(UserError, match=rf"blocks\.0\.attn\.qkv\.weight holds {dtype}"):
        load(str(path))
    with pytest.raises(UserError, match=rf"{dtype} as blocks\.0\.attn\.qkv\.weight"):
        read_backbone(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"depth": 10**9},
        {"embed_dim": 10**6},
        {"num_classes": 10**12},
        {"positions": 10**12},
        {"img_size": 10**6},
        {"mlp_ratio": 1e9},
        {"depth": -1},
        {"depth": "many"},
    ],
)
def test_a_checkpoint_that_names_a_huge_model_takes_no_memory(tmp_path, changed):
    assert load(str(checkpoint(tmp_path / "good.ckpt"))).model.depth == 4
    with pytest.raises(UserError, match="weights don't fit the model it names|can't be created"):
        load(str(checkpoint(tmp_path / "huge.ckpt", **changed)))


@pytest.mark.parametrize(
    "changed",
    [
        {"pretrained": True},
        {"pretrained": True, "pretrained_cfg": {"url": "http://127.0.0.1:9/weights.pth"}},
        {"pretrained": "weights.pth"},
        {"pretrained_cfg": {"file": "weights.pth"}},
        {"pretrained_cfg_overlay": {"file": "weights.pth"}},
        {"checkpoint_path": "weights.pth"},
        {"cache_dir": "elsewhere"},
        {"name": "hf-hub:timm/vit_tiny_patch16_224"},
        {"name": "local-dir:weights"},
        {"name": ["x"]},
    ],
    ids=str,
)
def test_a_checkpoint_opens_no_other_file_and_no_connection(tmp_path, monkeypatch, changed):
    monkeypatch.chdir(tmp_path)
    path = checkpoint(tmp_path / "model.ckpt", **changed)
    (tmp_path / "weights.pth").write_bytes(b"not to be opened")
    opened = []

    def note(event, arguments):
        if event in ("open", "socket.connect", "socket.getaddrinfo"):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    with pytest.raises(UserError, match="which describes no model|timm has no model|don't fit|can't be created"):
        load(str(path))

    for name in opened:
        assert not any(forbidden in name for forbidden in ("weights", "127.0.0.1", "huggingface"))


def test_a_checkpoint_does_not_make_one_download(monkeypatch):
    config = TorchvisionImages("MNIST", 10, download=True).config()
    assert config.args["download"] is True
    assert from_config(config).download is False

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda _: pytest.fail("it downloads"))
    test_args = {"train": False, "download": True}
    config = TorchvisionImages("MNIST", 10, root="/nowhere", test_args=test_args).config()
    with pytest.raises(UserError, match="download"):
        from_config(config).setup("test")

    with pytest.raises(UserError, match="has no data set named LSUN"):
        TorchvisionImages("LSUN", 10).setup("test")


@pytest.mark.parametrize(
    "data",
    [
        DataConfig("Digits", {"batch_size": "x"}),
        DataConfig("Digits", {"val_fraction": "x"}),
        DataConfig("Digits", {"more": 1}),
        DataConfig("TorchvisionImages", {}),
    ],
    ids=str,
)
def test_data_that_a_checkpoint_cannot_have_been_trained_on(data):
    with pytest.raises(UserError, match="the data set it was trained on is not known here"):
        from_config(data)

    # The number of processes is no part of the data, and not taken over.
    assert from_config(DataConfig("Digits", {"workers": 10**6})).workers is None


def test_no_module_is_imported_because_a_checkpoint_names_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "strangers.py").write_text("raise SystemExit('imported')")
    recorded = DataConfig("strangers.Data", {})
    complaint = r"strangers\.Data, is not known here: if you trust .* --data strangers\.Data"
    for trusted in (None, "Digits", "strangers.Other"):
        with pytest.raises(UserError, match=complaint):
            from_config(recorded, trusted)

    with pytest.raises(SystemExit, match="imported"):
        from_config(recorded, "strangers.Data")


# --- Anything at random -------------------------------------------------------------------------------------


@FEW
@given(st.one_of(st.text(), st.from_regex(r"[0-9af()|* ]{0,30}")))
def test_any_text_is_an_order_or_a_user_error(text):
    try:
        order = Order(text)
    except UserError:
        return
    assert Order(str(order)) == order
    assert len(order) <= MAX_STEPS


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("layershuffle_results", "model", "data", "evaluation", "environment", "measures", "scores")


@FEW
@given(st.sampled_from(KEYS), VALUES, st.booleans())
def test_any_json_is_results_or_a_user_error(tmp_path, key, value, inside):
    path = tmp_path / "fuzzed.json"
    whole_results().save(path)
    content = json.loads(path.read_text())
    if inside and key == "scores" and isinstance(value, dict):
        content["scores"][0] |= value
    else:
        content[key] = value
    path.write_text(json.dumps(content))
    try:
        results = Results.load(path)
    except UserError:
        return
    assert all(isinstance(score, Score) for score in results.scores)
    assert isinstance(str(results.label), str)


@st.composite
def damaged(draw, *contents):
    """One of ``contents`` with up to four bytes changed, and perhaps cut short."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1))
        content[at] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        length = draw(st.integers(0, len(content)))
        content = content[:length]
    return bytes(content)


STATE_DICT = {"a": torch.arange(6.0).view(2, 3)}


def torch_file():
    """The bytes of a small checkpoint."""
    buffer = io.BytesIO()
    torch.save({"state_dict": STATE_DICT, METADATA_KEY: {"model": {"name": "x"}}}, buffer)
    return buffer.getvalue()


WEIGHTS = damaged(torch_file(), safetensors.torch.save(STATE_DICT))


@FEW
@given(WEIGHTS | st.binary(max_size=50), st.sampled_from(["ckpt", "safetensors"]))
def test_any_bytes_are_a_checkpoint_or_a_user_error(tmp_path, content, suffix):
    path = tmp_path / f"fuzzed.{suffix}"
    path.write_bytes(content)
    complaint = ""
    try:
        assert isinstance(read_file(path), dict)
    except UserError as error:
        complaint = str(error)
    assert "\n" not in complaint


@FEW
@given(st.data())
def test_any_bytes_are_results_or_a_user_error(tmp_path, data):
    path = tmp_path / "fuzzed.json"
    whole_results().save(path)
    path.write_bytes(data.draw(damaged(path.read_bytes()) | st.binary(max_size=50)))
    try:
        results = Results.load(path)
    except UserError:
        return
    assert isinstance(str(results.label), str)


CONFIG = b"experiment:\n  seeds: &s [0]\n  setups: {a: {train: {configs: [model/vit_b16]}, methods: {b: {}}}}\n"


@FEW
@given(st.lists(damaged(CONFIG) | st.binary(max_size=30), min_size=1, max_size=2))
def test_any_bytes_are_configs_or_a_user_error(tmp_path, contents):
    read_configs(tmp_path, contents)


@FEW
@given(st.lists(st.dictionaries(st.sampled_from(["seeds", "setups", "x"]), VALUES, max_size=3), min_size=1, max_size=3))
def test_any_configs_merge_or_are_a_user_error(tmp_path, experiments):
    contents = [yaml.safe_dump({"experiment": experiment}).encode() for experiment in experiments]
    read_configs(tmp_path, contents)


def read_configs(folder, contents):
    """Read the configuration of an experiment from files of these contents, and ignore a UserError."""
    arguments = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.yaml"
        path.write_bytes(content)
        arguments.append(f"--config={path}")
    with contextlib.suppress(UserError):
        experiment_parser().parse_args(arguments)
