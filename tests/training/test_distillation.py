"""Learning from a frozen teacher: the formula of arXiv 1503.02531, and what the run keeps of the teacher."""

import math
from copy import deepcopy
from statistics import fmean

import lightning.pytorch as pl
import pytest
import torch
from helpers import DIGITS, QUIET, SMALL, fails
from lightning.pytorch.callbacks import EMAWeightAveraging
from test_module import trainer, tuner

from layershuffle.checkpoints.loading import load
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.commands.train import train_command
from layershuffle.data import Digits
from layershuffle.data.augmentation import Augmentation
from layershuffle.files import sha256
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order
from layershuffle.orders.samplers import RandomSubset
from layershuffle.training.objectives import Distillation, InstanceWise
from layershuffle.training.objectives.classification import position_cross_entropy
from layershuffle.training.objectives.distillation import Teacher

DROPPED = SMALL | {"drop_rate": 0.3}  # so that a teacher in training mode gives other logits


@pytest.fixture
def saved(tmp_path):
    """Saves a checkpoint of an untrained model with clear opinions, whose data know these names of classes."""

    def save(file="teacher.ckpt", names=None, seed=1, **config):
        config = {"name": "vit_tiny_patch16_224", "num_classes": 10, "order": "3 1 2 0"} | DROPPED | config
        module = tuner(timm_args=config, **{key: config.pop(key) for key in ("name", "num_classes", "order")})
        torch.manual_seed(seed)
        torch.nn.init.normal_(module.model.vit.head.weight)
        record = {"model": module.model.config, "data": {"class": "Digits", "args": {}, "classes": names}}
        torch.save({"state_dict": module.state_dict(), METADATA_KEY: record}, tmp_path / file)
        return str(tmp_path / file)

    return save


class Steps(pl.Callback):
    """Copies the student and the images before each step, and notes the loss after it."""

    def __init__(self):
        self.before, self.batches, self.losses = [], [], []

    def on_train_start(self, trainer, module):
        loss = module.objective.loss

        def noted(model, images, labels, orders, key):
            self.before.append(deepcopy(model))
            self.batches.append((images.clone(), labels.clone(), orders))
            return loss(model, images, labels, orders, key)

        module.objective.loss = noted

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def test_the_loss_is_the_papers_formula_and_the_teacher_stays_out_of_everything(saved, tmp_path):
    path, steps = saved(), Steps()
    module = tuner(
        **{"position": "predict", "sampler": RandomSubset(), "budget": "layer_executions", "orders_per_batch": 2},
        augmentation=Augmentation(mixup=0.8),
        objective=Distillation(path, 0.3, 2.0, label_smoothing=0.1, class_weights=[1.0, 5.0] * 5),
    )
    averaged = EMAWeightAveraging(decay=0.9)
    module.load_objective()
    run = trainer(tmp_path, callbacks=[steps, averaged], max_epochs=-1, max_steps=2, log_every_n_steps=1)
    run.fit(module, datamodule=Digits(batch_size=8))
    teacher = load(path).model
    divergences, truths = [], []
    for before, (images, labels, orders), found in zip(steps.before, steps.batches, steps.losses):
        outputs = [before(part, order) for part, order in zip(images.tensor_split(2), orders)]
        logits = torch.cat([output.logits for output in outputs]).detach()
        p = torch.softmax(teacher(images, Order("3 1 2 0")).logits.detach() / 2, 1)
        q = torch.softmax(logits / 2, 1)
        divergence = 2**2 * (p * (p / q).log()).sum(1).mean()
        truth = torch.nn.functional.cross_entropy(logits, labels, torch.tensor([1.0, 5.0] * 5), label_smoothing=0.1)
        positions = sum(position_cross_entropy(output).sum().detach() for output in outputs) / 2
        assert found == pytest.approx((0.7 * truth + 0.3 * divergence + positions).item(), rel=1e-4)
        divergences.append(float(divergence))
        truths.append(float(truth))
    for name, terms in (("distillation", divergences), ("classification", truths)):
        assert float(run.callback_metrics[f"train/{name}_loss"]) == pytest.approx(fmean(terms), rel=1e-4)
    ran = sum(
        len(order) * len(part) for _, labels, orders in steps.batches for order, part in zip(orders, [labels[:4]] * 2)
    )
    assert module.compute.layer_executions == ran  # the student's alone

    run.save_checkpoint(tmp_path / "student.ckpt")
    content, alone = torch.load(tmp_path / "student.ckpt", weights_only=True), tuner(position="predict")
    assert content[METADATA_KEY]["distillation"] == {
        **{"teacher": path, "weight": 0.3, "temperature": 2.0, "sha256": sha256(path)}
    }
    assert {name for name in content["state_dict"] if "model." in name} == {*alone.state_dict()}
    assert len(content["optimizer_states"][0]["param_groups"][0]["params"]) == len([*alone.parameters()])
    assert averaged._average_model.module.objective.teacher is module.objective.teacher
    for name, value in load(path).model.state_dict().items():
        assert torch.equal(value, module.objective.teacher.model.state_dict()[name])


def test_a_resumed_run_ends_with_the_same_weights(saved, tmp_path):
    def fit(epochs, file, ckpt_path=None):
        pl.seed_everything(3, verbose=False)
        module = tuner(timm_args=DROPPED, objective=Distillation(teacher))
        run = trainer(tmp_path, max_epochs=epochs)
        run.fit(module, datamodule=Digits(batch_size=8), ckpt_path=ckpt_path, weights_only=True)
        run.save_checkpoint(tmp_path / file)
        return {name: value.clone() for name, value in module.state_dict().items()}

    teacher = saved()
    whole = fit(2, "whole.ckpt")
    half = fit(1, "half.ckpt")
    resumed = fit(2, "resumed.ckpt", tmp_path / "half.ckpt")
    assert any(not torch.equal(value, half[name]) for name, value in whole.items())
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    saved(seed=2)  # in the same file
    with pytest.raises(ValueError, match=r"teacher.ckpt is another file than the one that this run began with"):
        fit(2, "again.ckpt", tmp_path / "half.ckpt")


def test_a_teacher_sees_images_normalised_as_in_its_own_training(saved):
    student, path = tuner().model, saved(in_chans=3)
    teacher = Teacher(path, student)
    grey = torch.rand(4, 1, 8, 8)
    (_, mean, std, *_), (_, own_mean, own_std, *_) = load(path).model.image_format, student.image_format
    student.vit.pretrained_cfg = student.vit.pretrained_cfg | {"mean": (0.2, 0.2, 0.2), "std": (0.3, 0.3, 0.3)}
    other = Teacher(path, student)
    expected = load(path).model(
        (grey.expand(-1, 3, -1, -1) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    )
    torch.testing.assert_close(other((grey - 0.2) / 0.3), expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher((grey - own_mean[0]) / own_std[0]), expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"num_classes": 7}, "has 7 classes, but the model 10"),
        ({"img_size": 12}, r"takes images of 1 x 12 x 12 .*, but the model takes 1 x 8 x 8"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(saved, config, complaint):
    with pytest.raises(ValueError, match=complaint):
        Teacher(saved(**config), tuner().model)


def test_classes_of_other_names_are_refused(saved, tmp_path):
    class Named(Digits):
        class_names = [f"digit {label}" for label in range(10)]  # noqa: RUF012

    for names, fits in ((Named.class_names, True), ([*Named.class_names[:9], "nine"], False)):
        module = tuner(objective=Distillation(saved(names=names)))
        run = trainer(tmp_path, max_epochs=0)
        if fits:
            run.fit(module, datamodule=Named())
        else:
            with pytest.raises(ValueError, match="class 9 is 'nine' there, but 'digit 9' here"):
                run.fit(module, datamodule=Named())


def test_a_teacher_whose_classes_have_another_sequence(saved, images):
    names = [f"digit {label}" for label in range(10)]
    teacher = Teacher(saved(names=names[::-1]), tuner().model)
    expected = teacher(images)
    teacher.match_names(names)
    assert torch.equal(teacher(images), expected.flip(1))


def test_options_that_mean_nothing_are_refused():
    for wrong in ({"weight": 0.0}, {"weight": 1.1}, {"temperature": 0.0}, {"temperature": math.inf}):
        with pytest.raises(ValueError, match="a weight above 0 and at most 1, and a temperature above 0"):
            Distillation("teacher.ckpt", **wrong)
    with pytest.raises(ValueError, match="--model.objective InstanceWise"):
        tuner(choices=["0 1 2 3", "3 2 1 0"], objective=Distillation("teacher.ckpt"))
    with pytest.raises(ValueError, match="--model.choices"):
        tuner(objective=InstanceWise())


def test_a_missing_teacher_fails_before_the_data_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Digits, "setup", lambda *_: pytest.fail("the data were read"))
    error = fails(
        capsys,
        train_command,
        *DIGITS,
        *QUIET,
        "--model.objective=Distillation",
        "--model.objective.teacher=runs/gone.ckpt",
    )
    assert error == "error: there is no file runs/gone.ckpt"
    assert not (tmp_path / "runs").exists()


def test_a_teacher_follows_the_precision_of_the_run(saved, tmp_path):
    module = tuner(objective=Distillation(saved()))
    trainer(tmp_path, max_steps=1, precision="bf16-true").fit(module, datamodule=Digits(batch_size=8))
    assert isinstance(module.objective.teacher.model, OrderedViT)
    assert {value.dtype for value in module.objective.teacher.model.parameters()} == {torch.bfloat16}
