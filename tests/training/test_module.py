"""The LightningModule: which order each step runs, what the losses are, and that it learns what it should."""

import math
from copy import deepcopy
from functools import partial
from itertools import pairwise
from statistics import fmean
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from helpers import DIGITS, QUIET, SMALL, train
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from layershuffle.api.compose import compose
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.data import Digits
from layershuffle.data.augmentation import Augmentation
from layershuffle.data.sets import labels_of
from layershuffle.errors import UserError
from layershuffle.models.model import Output
from layershuffle.models.weights import read_file
from layershuffle.orders.named import permutation, sequential
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.sampler import OrderSampler
from layershuffle.orders.samplers import FirstLayers, GrowingDepth, LayerDrop, RandomSubset, Sequential, Shuffle
from layershuffle.training.callbacks import GradientNorm, ProgressBar, ThroughputLogger
from layershuffle.training.compute import layers_run
from layershuffle.training.method import method_name
from layershuffle.training.module import FineTuner
from layershuffle.training.objectives import Classification, InstanceWise
from layershuffle.training.objectives.classification import position_cross_entropy
from layershuffle.training.schedule import Schedule

SEED = 5
DEPTH = SMALL["depth"]


def tuner(**arguments):
    """An untrained module with a small model; ``arguments`` replace the default ones."""
    torch.manual_seed(0)
    defaults = {"name": "vit_tiny_patch16_224", "num_classes": 10, "timm_args": SMALL, "seed": SEED}
    return FineTuner(**(defaults | arguments))


def trainer(folder, **arguments):
    """A quiet trainer of four steps in one epoch; ``arguments`` replace the default ones."""
    defaults = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "max_epochs": 1,
        "limit_train_batches": 4,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**(defaults | arguments))


def shuffled_order(step, rank=0):
    """The order that a module with the default sampler must run in a step, on a process or in a part of a batch."""
    return Shuffle().sample_step(DEPTH, SEED, step, rank)


class Spy(pl.Callback):
    """Notes the order of every training forward and the losses that were logged."""

    def __init__(self):
        self.orders = []
        self.losses = []

    def on_train_start(self, trainer, module):
        def note(_, args):
            if module.training:
                self.orders.append(Order(args[1]))

        module.model.register_forward_pre_hook(note)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


class Rates(pl.Callback):
    """Notes the learning rate of every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_each_step_runs_the_order_drawn_for_it(tmp_path):
    spy = Spy()
    trainer(tmp_path, callbacks=[spy], max_epochs=2).fit(tuner(), datamodule=Digits())

    assert spy.orders == [shuffled_order(step) for step in range(8)]


def test_a_resumed_run_draws_what_an_uninterrupted_one_does(tmp_path):
    first = trainer(tmp_path, max_epochs=1)
    first.fit(tuner(), datamodule=Digits())
    first.save_checkpoint(tmp_path / "last.ckpt")

    spy = Spy()
    resumed = trainer(tmp_path, callbacks=[spy], max_epochs=2)
    resumed.fit(tuner(), datamodule=Digits(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)

    # The first epoch was steps 0 to 3.
    assert spy.orders == [shuffled_order(step) for step in range(4, 8)]


def test_a_resumed_run_reads_the_batches_an_uninterrupted_one_does(tmp_path):
    class Labels(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.seen.append(batch[1].tolist())

    whole = Labels()
    pl.seed_everything(3, verbose=False)
    trainer(tmp_path, max_epochs=3, callbacks=[whole]).fit(tuner(), datamodule=Digits())

    pl.seed_everything(3, verbose=False)
    first = trainer(tmp_path, max_epochs=2)
    first.fit(tuner(), datamodule=Digits())
    first.save_checkpoint(tmp_path / "last.ckpt")

    resumed = Labels()
    pl.seed_everything(3, verbose=False)
    trainer(tmp_path, max_epochs=3, callbacks=[resumed]).fit(
        tuner(), datamodule=Digits(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )

    # Three epochs of 4 batches, the last of which the resumed run repeats.
    assert len(whole.seen) == 12
    assert resumed.seen == whole.seen[8:]
    # Every epoch has batches of its own, so a run that began anew would not pass.
    assert whole.seen[:4] != whole.seen[8:]


def test_accumulated_batches_share_the_order(tmp_path):
    spy = Spy()
    trainer(tmp_path, callbacks=[spy], accumulate_grad_batches=2).fit(tuner(), datamodule=Digits())

    assert spy.orders == [shuffled_order(step) for step in (0, 0, 1, 1)]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_the_papers_formula(tmp_path, reduction):
    module = tuner(position="predict", objective=Classification(position_loss=reduction))
    data = Digits(batch_size=8)
    untrained = {name: value.clone() for name, value in module.state_dict().items()}

    spy = Spy()
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path, callbacks=[spy], limit_train_batches=1).fit(module, datamodule=data)

    # The same batch again, through the weights from before the step.
    module.load_state_dict(untrained)
    pl.seed_everything(1, verbose=False)
    images, labels = next(iter(data.train_dataloader()))
    output = module.model(module.preprocess(images), shuffled_order(step=0))
    class_loss = -torch.log_softmax(output.logits, 1)[range(8), labels].mean()
    position_losses = []
    for position in range(DEPTH):
        log_probabilities = torch.log_softmax(output.position_logits[position], 1)
        position_losses.append(-log_probabilities[:, position].mean())
    position_loss = sum(position_losses)
    if reduction == "mean":
        position_loss = position_loss / DEPTH
    assert spy.losses == pytest.approx([(class_loss + position_loss).item()], rel=1e-5)


def test_position_cross_entropy():
    logits = torch.randn(3, 2, 5)  # 3 steps, 2 images and 5 positions
    output = Output(torch.zeros(2, 5), logits, range(3))

    expected = [F.cross_entropy(logits[step], torch.tensor([step, step])) for step in range(3)]
    torch.testing.assert_close(position_cross_entropy(output), torch.stack(expected))


def test_validation_reports_sequential_and_arbitrary_side_by_side(tmp_path):
    module = tuner()
    data = Digits(val_fraction=0.1)
    run = trainer(tmp_path)
    run.validate(module, datamodule=data, verbose=False)

    images, labels = next(iter(data.val_dataloader()))
    images = module.preprocess(images)
    module.eval()

    def accuracy(logits):
        return (logits.argmax(1) == labels).float().mean().item()

    in_sequence = module.model(images, sequential(DEPTH)).logits
    arbitrary = module.model(images, permutation(DEPTH, seeded(SEED, "validation", 0))).logits
    assert float(run.callback_metrics["val/sequential"]) == pytest.approx(accuracy(in_sequence))
    assert float(run.callback_metrics["val/arbitrary"]) == pytest.approx(accuracy(arbitrary))
    # A model with the sampler Shuffle is selected by its loss in a random order, which is the arbitrary one.
    expected_loss = F.cross_entropy(arbitrary, labels).item()
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("sampler", "number_of_orders"), [(Sequential(), 2), (Shuffle(), 2), (LayerDrop(), 2), (FirstLayers(3), 2)]
)
def test_validation_runs_no_order_twice(tmp_path, sampler, number_of_orders):
    module = tuner(sampler=sampler)
    orders = []
    module.model.register_forward_pre_hook(lambda _, args: orders.append(args[1]))
    trainer(tmp_path).validate(module, datamodule=Digits(), verbose=False)

    assert len(orders) == len(set(orders)) == number_of_orders
    trained_layers = sampler.base_order(DEPTH).layers
    assert {order.layers for order in orders} == {trained_layers}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1 / 3, 2 / 3, 1, 1]), ("linear", [1 / 3, 2 / 3, 1, 0.5]), ("cosine", [1 / 3, 2 / 3, 1, 0.5])],
)
def test_schedules(tmp_path, schedule, expected):
    rates = Rates()
    trainer(tmp_path, callbacks=[rates]).fit(tuner(schedule=Schedule(schedule, warmup_steps=2)), datamodule=Digits())

    assert rates.seen == pytest.approx([1e-4 * factor for factor in expected])


@pytest.mark.parametrize("orders_per_batch", [1, 3])
def test_a_budget_of_layer_executions_is_used_up_and_counted(tmp_path, orders_per_batch):
    batch_size = 30
    warmup_steps = 2
    module = tuner(
        sampler=GrowingDepth(k0=1, end=0.75),
        orders_per_batch=orders_per_batch,
        budget="layer_executions",
        schedule=Schedule("cosine", warmup_steps=warmup_steps),
    )
    spy = Spy()
    rates = Rates()
    run = trainer(tmp_path, callbacks=[spy, rates, ThroughputLogger()], max_epochs=2, log_every_n_steps=1)
    run.fit(module, datamodule=Digits(batch_size=batch_size))

    # The same run, written out: each step uses up the mean share of the 4 layers that its orders run.
    planned_steps = 8  # 2 epochs of 4 batches
    used = 0.0
    layers_of_steps = []
    expected_orders = []
    expected_rates = []
    while used < planned_steps:
        step = len(layers_of_steps)
        progress = used / planned_steps
        orders = [module.sampler.sample_step(DEPTH, SEED, step, part, progress) for part in range(orders_per_batch)]
        expected_orders += orders
        if used < warmup_steps:
            factor = (used + 1) / (warmup_steps + 1)
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (used - warmup_steps) / (planned_steps - warmup_steps)))
        expected_rates.append(1e-4 * factor)
        mean_layers = fmean(map(len, orders))
        layers_of_steps.append(mean_layers)
        used += mean_layers / DEPTH
    number_of_steps = len(layers_of_steps)
    images = batch_size * number_of_steps
    layer_executions = batch_size * sum(layers_of_steps)

    assert spy.orders == expected_orders
    assert run.global_step == number_of_steps > planned_steps
    assert rates.seen == pytest.approx(expected_rates)
    assert (module.compute.images, module.compute.updates) == (images, number_of_steps)
    assert module.compute.layer_executions == pytest.approx(layer_executions)
    assert float(run.callback_metrics["train/layer_executions"]) == pytest.approx(layer_executions)
    assert 0 < module.compute.seconds == pytest.approx(float(run.callback_metrics["train/seconds"]))
    assert "val/loss" in run.callback_metrics  # although the last epoch ended early
    # The trainer's limits, which the budget takes away during the run, are back (-1 is no limit).
    assert (run.max_epochs, run.max_steps) == (2, -1)


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 6}])
def test_at_full_depth_a_budget_of_layer_executions_is_one_of_steps(tmp_path, limit):
    def run(budget):
        """Train with this budget; returns the orders, the losses, the learning rates and what was counted."""
        spy = Spy()
        rates = Rates()
        pl.seed_everything(3, verbose=False)
        module = tuner(budget=budget, schedule=Schedule("cosine", warmup_steps=0.3))
        trainer(tmp_path, callbacks=[spy, rates], **limit).fit(module, datamodule=Digits())
        return spy.orders, spy.losses, rates.seen, vars(module.compute)

    in_steps = run("steps")
    in_layer_executions = run("layer_executions")

    assert in_steps == in_layer_executions
    orders = in_steps[0]
    assert len(orders) == limit.get("max_steps", 8)  # 2 epochs of 4 batches, unless the steps are limited


def test_accumulated_batches_share_the_orders_under_any_budget(tmp_path):
    spy = Spy()
    module = tuner(sampler=RandomSubset(), budget="layer_executions")
    run = trainer(tmp_path, callbacks=[spy], accumulate_grad_batches=2, max_epochs=3, log_every_n_steps=1)
    run.fit(module, datamodule=Digits(batch_size=10))

    # Each step has two batches.
    expected = [RandomSubset().sample_step(DEPTH, SEED, step) for step in range(run.global_step)]
    assert spy.orders[::2] == expected
    assert spy.orders[1::2] == expected
    assert module.compute.layer_executions == 10 * sum(map(len, spy.orders))
    assert module.compute.full_steps == pytest.approx(sum(map(len, expected)) / DEPTH)


def test_every_layer_that_runs_counts(tmp_path):
    # Layer 0 twice, a group of two layers twice, and two halves of layer 3.
    assert layers_run(Order("0 (1|2)*2 3a 3f 0")) == 7

    # Images that choose run in every order in training, here of 4 layers, 3 layers and 2 halves.
    module = tuner(choices=["0 1 2 3", "3 2 1", "0a 1f"], objective=InstanceWise(), orders_per_process=False)
    trainer(tmp_path, limit_train_batches=2).fit(module, datamodule=Digits(batch_size=10))
    assert module.compute.layer_executions == 2 * 10 * (4 + 3 + 1)


@pytest.mark.parametrize("options", [{}, {"position": "predict"}, {"augmentation": Augmentation(mixup=0.8)}])
def test_parts_of_a_batch_in_different_orders_make_one_update(tmp_path, options):
    class Gradients(pl.Callback):
        """Notes the gradients of every step."""

        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, module, *_):
            self.seen.append({name: value.grad.clone() for name, value in module.model.named_parameters()})

    module = tuner(orders_per_batch=3, objective=Classification(label_smoothing=0.1), **options)
    data = Digits(batch_size=8)
    untrained = deepcopy(module.model)
    gradients = Gradients()
    mixed = []
    if module.mix:
        module.mix.register_forward_hook(lambda mix, inputs, output: mixed.append(output))
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path, callbacks=[gradients], limit_train_batches=1).fit(module, datamodule=data)

    # The same batch through the untrained model, part by part.
    pl.seed_everything(1, verbose=False)
    images, labels = next(iter(data.train_dataloader()))
    images = module.preprocess(images)
    if mixed:
        images, labels = mixed[0]
    parts = [slice(0, 3), slice(3, 6), slice(6, 8)]  # 8 images in 3 parts
    for part, rows in enumerate(parts):
        output = untrained(images[rows], shuffled_order(step=0, rank=part))
        loss = F.cross_entropy(output.logits, labels[rows], label_smoothing=0.1, reduction="sum")
        if output.position_logits is not None:
            loss = loss + len(labels[rows]) * position_cross_entropy(output).sum()
        (loss / 8).backward()

    assert len(gradients.seen) == 1
    for name, parameter in untrained.named_parameters():
        torch.testing.assert_close(gradients.seen[0][name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_one_process_with_two_orders_draws_those_of_two_processes(tmp_path):
    one = tuner(orders_per_batch=2).orders
    two = tuner().orders
    assert one.sample_parts(3, 0) == two.sample_parts(3, 0) + two.sample_parts(3, 1)
    assert one.sample_parts(3, 1) == two.sample_parts(3, 2) + two.sample_parts(3, 3)

    with pytest.raises(ValueError, match="orders_per_batch is a number from 1 up"):
        tuner(orders_per_batch=0)
    with pytest.raises(ValueError, match="orders_per_batch is a number from 1 up"):
        tuner(orders_per_batch=2, choices=["0 1 2 3"], objective=InstanceWise())


def test_a_schedule_without_an_end_says_so(tmp_path):
    with pytest.raises(ValueError, match="a linear schedule needs an end"):
        trainer(tmp_path, max_epochs=-1).fit(tuner(schedule=Schedule("linear")), datamodule=Digits())
    with pytest.raises(ValueError, match="a constant schedule with a share as warm-up needs an end"):
        trainer(tmp_path, max_epochs=-1).fit(tuner(schedule=Schedule(warmup_steps=0.1)), datamodule=Digits())


@pytest.mark.parametrize("budget", ["steps", "layer_executions"])
def test_a_run_without_an_end_goes_on_until_it_is_stopped(tmp_path, budget):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 6

    endless = trainer(tmp_path, max_epochs=-1, callbacks=[Stop()])
    endless.fit(tuner(budget=budget), datamodule=Digits())
    assert endless.global_step == 6


def test_throughput_is_logged(tmp_path):
    run = trainer(tmp_path, callbacks=[ThroughputLogger()], log_every_n_steps=3)
    run.fit(tuner(), datamodule=Digits())
    assert 1 < float(run.callback_metrics["train/images_per_second"]) < 1e6


def test_the_norm_of_the_gradients_is_logged_before_they_are_clipped(tmp_path):
    class Norms(pl.Callback):
        """Computes the norm in every step, and notes what was logged; each by the number of steps done."""

        def __init__(self):
            self.expected = {}
            self.logged = {}

        def on_after_backward(self, trainer, module):
            gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            self.expected[trainer.global_step + 1] = float(torch.cat([grad.flatten() for grad in gradients]).norm())

        def on_train_batch_end(self, trainer, *_):
            if "train/gradient_norm" in trainer.logged_metrics:
                self.logged[trainer.global_step] = float(trainer.logged_metrics["train/gradient_norm"])

    largest_norm = 1e-3
    norms = Norms()
    run = trainer(
        tmp_path,
        callbacks=[GradientNorm(), norms],
        logger=CSVLogger(tmp_path),
        log_every_n_steps=2,
        gradient_clip_val=largest_norm,
    )
    run.fit(tuner(), datamodule=Digits())

    assert norms.logged[2] == pytest.approx(norms.expected[2], rel=1e-5)
    assert norms.logged[4] == pytest.approx(norms.expected[4], rel=1e-5)
    # All gradients are clipped, so their norms afterwards would not pass.
    assert min(norms.expected.values()) > 10 * largest_norm


class HostReads(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket._qualified_op_name in ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero"):
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("position", ["none", "encode", "predict"])
def test_a_step_never_waits_for_the_device_unless_it_logs(tmp_path, position):
    reads = HostReads()

    class ReadsBeforeSteps(pl.Callback):
        def __init__(self):
            self.counts = []

        def on_train_batch_start(self, *_):
            self.counts.append(reads.count)

    before_steps = ReadsBeforeSteps()
    run = trainer(
        tmp_path,
        callbacks=[before_steps, ThroughputLogger(), GradientNorm(), ProgressBar(), LearningRateMonitor()],
        enable_progress_bar=True,
        logger=CSVLogger(tmp_path),
        log_every_n_steps=4,
        limit_train_batches=10,
        gradient_clip_val=1.0,
    )
    module = tuner(position=position, optimizer=torch.optim.AdamW, schedule=Schedule("cosine"))
    with reads:
        run.fit(module, datamodule=Digits())

    reads_of_steps = [after - before for before, after in pairwise(before_steps.counts)]
    # In the step that logs, the loggers and the progress bar read the metrics.
    assert [count > 0 for count in reads_of_steps] == [step % 4 == 0 for step in range(1, 10)]


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        (torch.optim.Adam, True),
        (torch.optim.SGD, True),
        (torch.optim.Adagrad, None),
        (partial(torch.optim.AdamW, foreach=True), None),
        (partial(torch.optim.AdamW, fused=False), False),
    ],
)
def test_the_optimizer_is_fused_where_it_can_be_and_was_not_told(tmp_path, optimizer, fused):
    run = trainer(tmp_path, limit_train_batches=1)
    run.fit(tuner(optimizer=partial(optimizer, lr=1e-3)), datamodule=Digits())

    assert run.optimizers[0].param_groups[0]["fused"] is fused


def losses_of(tmp_path, **arguments):
    """The losses of a run of six steps with these arguments of the module."""
    spy = Spy()
    pl.seed_everything(3, verbose=False)
    module = tuner(**arguments)
    trainer(tmp_path, callbacks=[spy], gradient_clip_val=1.0, limit_train_batches=6).fit(module, datamodule=Digits())
    return spy.losses


@pytest.mark.parametrize("position", ["none", pytest.param("encode", marks=pytest.mark.slow), "predict"])
def test_same_seed_same_losses_compiled_or_not_fused_or_not(tmp_path, monkeypatch, position):
    adamw = partial(torch.optim.AdamW, lr=1e-3)
    expected = losses_of(tmp_path, position=position, optimizer=partial(adamw, fused=False))

    # A backend that compiles no kernels, and so is quick.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    fast = losses_of(tmp_path, position=position, compile=True, optimizer=adamw)

    assert fast == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == 6  # the model learns, so every step has a loss of its own


@pytest.mark.parametrize("sampler", [LayerDrop(0.5), FirstLayers(2), Shuffle()])
def test_layers_that_an_order_leaves_out_are_not_run(tmp_path, sampler):
    module = tuner(sampler=sampler)
    passes = []

    def note(layer):
        return lambda *_: passes.append(layer)

    for layer, block in enumerate(module.model.vit.blocks):
        block.register_forward_hook(note(layer))
        block.register_full_backward_hook(note(layer))
    trainer(tmp_path, limit_val_batches=0).fit(module, datamodule=Digits())

    expected = []
    for step in range(4):
        order = sampler.sample_step(DEPTH, SEED, step)
        layers = [unit.layer for unit in order.units]
        expected += layers  # forward
        expected += reversed(layers)  # backward
    assert passes == expected


def test_the_default_optimizer_is_the_papers(tmp_path):
    run = trainer(tmp_path, limit_train_batches=1)
    run.fit(tuner(), datamodule=Digits())

    (group,) = run.optimizers[0].param_groups
    assert type(run.optimizers[0]) is torch.optim.Adam
    assert group["betas"] == (0.9, 0.999)
    assert group["eps"] == 1e-6
    assert group["weight_decay"] == 0


def test_a_checkpoint_is_plain_values_and_says_how_to_make_the_model(tmp_path):
    run = trainer(tmp_path)
    run.fit(tuner(position="encode", sampler=LayerDrop(0.3)), datamodule=Digits(batch_size=32, crop_pct=0.5))
    run.save_checkpoint(tmp_path / "run.ckpt")

    record = read_file(tmp_path / "run.ckpt")[METADATA_KEY]
    assert record["model"] == {
        "name": "vit_tiny_patch16_224",
        "num_classes": 10,
        "position": "encode",
        "positions": None,
        "head": "average",
        "norm_eps": None,
        **SMALL,
    }
    assert record["method"] == "layerdrop-position"
    assert record["sampler"] == "LayerDrop(p=0.3)"
    assert record["data"]["class"] == "Digits"
    assert record["data"]["args"]["batch_size"] == 32
    assert record["data"]["args"]["crop_pct"] == run.lightning_module.preprocess.resizing.crop_pct == 0.5


def test_another_models_checkpoint_is_refused(tmp_path):
    run = trainer(tmp_path, limit_train_batches=1)
    run.fit(tuner(), datamodule=Digits())
    run.save_checkpoint(tmp_path / "run.ckpt")

    other_position = tuner(position="predict")
    other_depth = tuner(timm_args=SMALL | {"depth": 3})
    for other in (other_position, other_depth):
        with pytest.raises(ValueError, match="resume from is of another model: (position|depth) differ"):
            trainer(tmp_path).fit(other, datamodule=Digits(), ckpt_path=tmp_path / "run.ckpt", weights_only=True)


def test_an_order_that_the_model_cannot_run_fails_at_once():
    with pytest.raises(ValueError, match="5 layers can't be kept of 4"):
        tuner(sampler=FirstLayers(5))


def test_a_new_method_is_a_few_lines(tmp_path):
    class Reverse(OrderSampler):
        method = "reverse"

        def sample(self, depth, rng):
            return Order(range(depth - 1, -1, -1))

    spy = Spy()
    module = tuner(sampler=Reverse(), position="encode")
    trainer(tmp_path, callbacks=[spy], limit_train_batches=2).fit(module, datamodule=Digits())
    assert spy.orders == [Order("3 2 1 0")] * 2
    assert module.method == "reverse-position"


def test_methods_have_the_fields_names():
    assert method_name(Sequential(), "none") == "baseline"
    assert method_name(Shuffle(), "none") == "layershuffle"
    assert method_name(Shuffle(), "encode") == "layershuffle-position"
    assert method_name(Shuffle(), "predict") == "layershuffle-predict"
    assert method_name(FirstLayers(6), "none") == "reduced-depth-6"
    assert tuner(label="with mixup").method == "with mixup"


def test_by_default_the_losses_are_those_of_the_papers_recipe_written_out(tmp_path):
    module = tuner()
    untrained = deepcopy(module)
    data = Digits(batch_size=32)
    spy = Spy()
    trainer(tmp_path, callbacks=[spy], limit_train_batches=6).fit(module, datamodule=data)

    optimizer = torch.optim.Adam(untrained.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-6, fused=True)
    losses = []
    for step, (images, labels) in zip(range(6), data.train_dataloader()):
        logits = untrained.model(untrained.preprocess(images), spy.orders[step]).logits
        loss = F.cross_entropy(logits, labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert spy.losses == losses


def test_class_weights_count_in_training_alone_and_are_recorded(tmp_path, monkeypatch):
    from sklearn.utils.class_weight import compute_class_weight

    weight_of_class = torch.tensor([1.0, 2.0, 4.0])
    labels = torch.tensor([0, 1, 1, 2])
    images = torch.randn(4, 1, 8, 8)
    module = tuner(num_classes=3, objective=Classification(class_weights=weight_of_class.tolist()))
    # What a step asks of its trainer.
    module.trainer = SimpleNamespace(
        accumulate_grad_batches=1,
        num_training_batches=1,
        world_size=1,
        global_rank=0,
        global_step=0,
        current_epoch=0,
        strategy=None,
    )
    logits = module.model(images, module.orders.sample(0)).logits

    # The mean over the images, in which each counts by the weight of its class.
    weights = weight_of_class[labels]
    unweighted = F.cross_entropy(logits, labels, reduction="none")
    expected = (weights * unweighted).sum() / weights.sum()
    torch.testing.assert_close(module.training_step((images, labels), 0), expected)

    # Of labels that are mixed, each class counts by its share.
    module.mix = lambda images, labels: (images, F.one_hot(labels, 3) / 2 + F.one_hot(labels.flip(0), 3) / 2)
    shares = (F.one_hot(labels, 3) + F.one_hot(labels.flip(0), 3)) / 2
    of_classes = -shares * weight_of_class * logits.log_softmax(1)
    torch.testing.assert_close(module.training_step((images, labels), 0), of_classes.sum() / len(images))

    for wrong in ([1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 2.0, math.inf]):
        with pytest.raises(UserError, match="class_weights is a number above 0 for each of the 3 classes, or balanced"):
            tuner(num_classes=3, objective=Classification(class_weights=wrong))

    # Weights that balance the classes are recorded as numbers, which the precision of the run doesn't round.
    monkeypatch.chdir(tmp_path)
    command = [*DIGITS, *QUIET, "--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--model.timm_args.depth=1"]
    run = train([*command, "--model.objective.class_weights=balanced", "--trainer.precision=bf16-true"])
    checkpoint = torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)
    labels = labels_of(run.datamodule.sets["train"]).numpy()
    balanced = compute_class_weight("balanced", classes=torch.arange(10).numpy(), y=labels)
    assert checkpoint[METADATA_KEY]["class_weights"] == pytest.approx(balanced)

    with pytest.raises(UserError, match="can't be balanced, because the class 0 has no training image: give a number"):
        train([*command, "--model.objective.class_weights=balanced", "--data.train_images=3"])

    objective = compose([*command, "--model.objective.class_weights=[1,1,1,1,1,1,1,1,1,2]"]).model.objective
    assert objective.weight_of_class.tolist() == [1] * 9 + [2]
