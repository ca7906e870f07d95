"""What we use of other libraries without their promise is still there."""

import importlib
import inspect
import sys

import pytest
import timm
import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops import training_epoch_loop
from lightning.pytorch.plugins.precision import amp
from lightning.pytorch.strategies import ModelParallelStrategy

from layershuffle import private_apis


@pytest.fixture
def trainer():
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


def test_lightning_asks_the_optimizer_whether_it_unscales_gradients():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)
    assert optimizer._step_supports_amp_scaling
    private_apis.allow_clipping_of_scaled_gradients(optimizer)
    assert not amp._optimizer_handles_unscaling(optimizer)


def test_the_loops_know_whether_they_restart(trainer):
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
        assert loop._restarting is False
        loop.reset_restart_stage()
    assert trainer.fit_loop.restarted_on_epoch_end is False
    private_apis.begin_next_epoch(trainer)
    assert trainer.fit_loop.epoch_progress.current.completed == 0


def test_lightning_agrees_on_signals_where_it_is_skipped(trainer):
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(training_epoch_loop)
    private_apis.skip_lightnings_agreement_on_signals(trainer)
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None


@pytest.mark.parametrize("use_buffers", [True, False])
def test_averages_that_do_not_wait_are_torchs(use_buffers):
    model = LightningModule()
    model.layer = torch.nn.BatchNorm1d(4)

    def average(changed):
        """The average of the same three states of the model, by Lightning as it is or as we change it."""
        torch.manual_seed(0)
        callback = EMAWeightAveraging(decay=0.9, use_buffers=use_buffers)
        callback.setup(None, model, "fit")
        if changed:
            private_apis.average_without_waiting(callback)
        for _ in range(3):
            with torch.no_grad():
                for value in [*model.parameters(), model.layer.running_mean]:
                    value.copy_(torch.randn_like(value))
            callback._average_model.update_parameters(model)
        return callback._average_model.state_dict()

    expected = average(changed=False)
    found = average(changed=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("many", [True, False])
def test_a_strategy_tells_how_it_saves(many):
    assert private_apis.saves_many_files(ModelParallelStrategy(save_distributed_checkpoint=many)) is many


def test_a_wandb_logger_passes_on_its_mode(tmp_path):
    logger = WandbLogger(save_dir=tmp_path)
    private_apis.set_wandb_mode(logger, "offline")
    assert "**self._wandb_init" in inspect.getsource(WandbLogger.experiment.fget.__wrapped__)
    assert logger._wandb_init["mode"] == "offline"
    assert "anonymous" in logger._wandb_init
    private_apis.leave_out_anonymous(logger)
    assert "anonymous" not in logger._wandb_init


@pytest.mark.parametrize("wanted", [True, False])
def test_a_trainer_tells_whether_it_adds_samplers(wanted):
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=wanted)
    assert private_apis.adds_distributed_sampler(trainer) is wanted


def test_ray_can_be_kept_on_loopback():
    ray = pytest.importorskip("ray")
    services = importlib.import_module("ray._private.services")
    resolve = services.resolve_ip_for_localhost
    with private_apis.ray_keeps_loopback_addresses():
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
    assert services.resolve_ip_for_localhost is resolve
    assert "resolve_ip_for_localhost(" in inspect.getsource(ray._private.worker)
    # ray.init refuses private arguments that it doesn't know.
    assert '"_node_ip_address"' in inspect.getsource(ray.init)


def test_onnx_exports_share_the_list_of_functions():
    pytest.importorskip("onnxscript")
    from torch.onnx._internal.exporter import _registration

    private_apis.list_onnx_functions_once()
    apis = _registration.onnxscript_apis
    assert "onnxscript_apis.get_torchlib_ops()" in inspect.getsource(_registration.ONNXRegistry.from_torchlib)
    functions = apis.get_torchlib_ops()
    assert len(functions) > 100
    assert apis.get_torchlib_ops() is functions


def test_timm_adds_position_embeddings_and_class_tokens():
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    images = torch.randn(2, 3, 8, 8)
    shape = (2, 1 + 4, 32)  # a class token and four patches

    vit = timm.create_model("vit_tiny_patch16_224", **sizes)
    tokens = private_apis.embed_patches(vit, vit.patch_embed(images))
    assert tokens.shape == shape

    eva = timm.create_model("eva02_tiny_patch14_224", **sizes)
    tokens, rotary_embeddings = private_apis.embed_patches(eva, eva.patch_embed(images))
    assert tokens.shape == shape
    assert len(rotary_embeddings) == 4


def test_timm_knows_the_classes_of_imagenets_sets():
    imagenet_a = set(private_apis.classes_of_imagenet_set("a"))
    imagenet_r = set(private_apis.classes_of_imagenet_set("r"))
    assert len(imagenet_a) == 200
    assert len(imagenet_r) == 200
    assert len(imagenet_a & imagenet_r) == 86
    goldfish = "n01443537"
    assert goldfish in imagenet_r
    assert goldfish not in imagenet_a


def test_a_fabric_tells_its_precision():
    assert private_apis.precision_of(Fabric(accelerator="cpu", precision="bf16-mixed")) == "bf16-mixed"


def test_ray_prints_no_reports(monkeypatch, capsys):
    worker = pytest.importorskip("ray._private.worker")
    report = {"lines": ["A worker died or was killed"], "pid": "raylet", "is_err": False}
    monkeypatch.setattr(worker, "_worker_logs_enabled", True)
    worker.print_worker_logs(report, sys.stdout)
    assert "died" in capsys.readouterr().out
    private_apis.keep_ray_from_printing()
    worker.print_worker_logs(report, sys.stdout)
    assert capsys.readouterr().out == ""
