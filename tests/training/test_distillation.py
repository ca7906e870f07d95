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
from torch.nn import functional as F

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


TEACHERS_ORDER = Order("3 1 2 0")


@pytest.fixture
def saved(tmp_path):
    """Makes a function that saves the checkpoint of an untrained model with clear opinions; it returns the path.

    ``names`` are what the checkpoint says of the classes' names.
    """

    def save(names=None, seed=1, num_classes=10, **timm_args):
        module = tuner(num_classes=num_classes, order=str(TEACHERS_ORDER), timm_args=DROPPED | timm_args)
        torch.manual_seed(seed)
        torch.nn.init.normal_(module.model.vit.head.weight)
        record = {"model": module.model.config, "data": {"class": "Digits", "args": {}, "classes": names}}
        path = str(tmp_path / "teacher.ckpt")
        torch.save({"state_dict": module.state_dict(), METADATA_KEY: record}, path)
        return path

    return save


class Steps(pl.Callback):
    """Copies the student and the images before each step, and notes the loss after it."""

    def __init__(self):
        self.students = []
        self.batches = []
        self.losses = []

    def on_train_start(self, trainer, module):
        loss = module.objective.loss

        def noted(model, images, labels, orders, key):
            self.students.append(deepcopy(model))
            self.batches.append((images.clone(), labels.clone(), orders))
            return loss(model, images, labels, orders, key)

        module.objective.loss = noted

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def test_the_loss_is_the_papers_formula_and_the_teacher_stays_out_of_everything(saved, tmp_path):
    path = saved()
    class_weights = [1.0, 5.0] * 5
    module = tuner(
        position="predict",
        sampler=RandomSubset(),
        budget="layer_executions",
        orders_per_batch=2,
        augmentation=Augmentation(mixup=0.8),
        objective=Distillation(path, weight=0.3, temperature=2.0, label_smoothing=0.1, class_weights=class_weights),
    )
    steps = Steps()
    averaged = EMAWeightAveraging(decay=0.9)
    module.load_objective()
    run = trainer(tmp_path, callbacks=[steps, averaged], max_epochs=-1, max_steps=2, log_every_n_steps=1)
    run.fit(module, datamodule=Digits(batch_size=8))

    # The losses of each step, written out.
    teacher = load(path).model
    divergences = []
    cross_entropies = []
    for student, (images, labels, orders), loss in zip(steps.students, steps.batches, steps.losses):
        outputs = [student(part, order) for part, order in zip(images.tensor_split(2), orders)]
        logits = torch.cat([output.logits for output in outputs]).detach()
        p = torch.softmax(teacher(images, TEACHERS_ORDER).logits.detach() / 2, 1)
        q = torch.softmax(logits / 2, 1)
        divergence = 2**2 * (p * (p / q).log()).sum(1).mean()
        cross_entropy = F.cross_entropy(logits, labels, torch.tensor(class_weights), label_smoothing=0.1)
        # The two parts of the batch are equally large.
        position_loss = sum(position_cross_entropy(output).sum().detach() for output in outputs) / 2
        expected = 0.7 * cross_entropy + 0.3 * divergence + position_loss
        assert loss == pytest.approx(expected.item(), rel=1e-4)
        divergences.append(float(divergence))
        cross_entropies.append(float(cross_entropy))
    logged = run.callback_metrics
    assert float(logged["train/distillation_loss"]) == pytest.approx(fmean(divergences), rel=1e-4)
    assert float(logged["train/classification_loss"]) == pytest.approx(fmean(cross_entropies), rel=1e-4)

    # Only the student's layers count. Each order runs for half of a batch of 8.
    student_executions = 0
    for _, _, orders in steps.batches:
        student_executions += 4 * sum(map(len, orders))
    assert module.compute.layer_executions == student_executions

    # The checkpoint names the teacher, but holds the student's weights alone.
    run.save_checkpoint(tmp_path / "student.ckpt")
    content = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert content[METADATA_KEY]["distillation"] == {
        "teacher": path,
        "weight": 0.3,
        "temperature": 2.0,
        "sha256": sha256(path),
    }
    without_teacher = tuner(position="predict")
    saved_weights = {name for name in content["state_dict"] if "model." in name}
    assert saved_weights == without_teacher.state_dict().keys()
    optimized = content["optimizer_states"][0]["param_groups"][0]["params"]
    assert len(optimized) == len(list(without_teacher.parameters()))

    # Averaging copies the student, not the teacher, which training has left as it was.
    assert averaged._average_model.module.objective.teacher is module.objective.teacher
    weights_after_training = module.objective.teacher.model.state_dict()
    for name, value in load(path).model.state_dict().items():
        assert torch.equal(value, weights_after_training[name])


def test_a_resumed_run_ends_with_the_same_weights(saved, tmp_path):
    def fit(epochs, file, ckpt_path=None):
        """Train and save a checkpoint; returns the weights."""
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
    for name, value in whole.items():
        assert torch.equal(value, resumed[name])
    # The second epoch did change the weights.
    assert any(not torch.equal(value, half[name]) for name, value in whole.items())

    saved(seed=2)  # another teacher in the same file
    with pytest.raises(ValueError, match=r"teacher.ckpt is another file than the one that this run began with"):
        fit(2, "again.ckpt", tmp_path / "half.ckpt")


def test_a_teacher_sees_images_normalised_as_in_its_own_training(saved):
    path = saved(in_chans=3)
    teacher_model = load(path).model
    grey = torch.rand(4, 1, 8, 8)
    mean = torch.tensor(teacher_model.image_format.mean).view(3, 1, 1)
    std = torch.tensor(teacher_model.image_format.std).view(3, 1, 1)
    expected = teacher_model((grey.expand(-1, 3, -1, -1) - mean) / std).logits

    student = tuner().model
    teacher = Teacher(path, student)
    students_format = student.image_format
    normalised = (grey - students_format.mean[0]) / students_format.std[0]
    torch.testing.assert_close(teacher(normalised), expected, rtol=1e-4, atol=1e-4)

    # A student with another normalisation.
    student.vit.pretrained_cfg = student.vit.pretrained_cfg | {"mean": (0.2, 0.2, 0.2), "std": (0.3, 0.3, 0.3)}
    teacher = Teacher(path, student)
    torch.testing.assert_close(teacher((grey - 0.2) / 0.3), expected, rtol=1e-4, atol=1e-4)


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

    def begin(names_of_teacher):
        """Begin a run of no epochs with a teacher of these classes."""
        module = tuner(objective=Distillation(saved(names=names_of_teacher)))
        trainer(tmp_path, max_epochs=0).fit(module, datamodule=Named())

    begin(Named.class_names)
    with pytest.raises(ValueError, match="class 9 is 'nine' there, but 'digit 9' here"):
        begin([*Named.class_names[:9], "nine"])


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
    distillation = ["--model.objective=Distillation", "--model.objective.teacher=runs/gone.ckpt"]
    error = fails(capsys, train_command, *DIGITS, *QUIET, *distillation)

    assert error == "error: there is no file runs/gone.ckpt"
    assert not (tmp_path / "runs").exists()


def test_a_teacher_follows_the_precision_of_the_run(saved, tmp_path):
    module = tuner(objective=Distillation(saved()))
    trainer(tmp_path, max_steps=1, precision="bf16-true").fit(module, datamodule=Digits(batch_size=8))
    assert isinstance(module.objective.teacher.model, OrderedViT)
    assert {value.dtype for value in module.objective.teacher.model.parameters()} == {torch.bfloat16}
