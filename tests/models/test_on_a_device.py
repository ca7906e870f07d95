"""What a GPU would be asked to do, found without one: tensors that have a device and a type, but no values."""

import pytest
import torch
from helpers import SMALL
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from layershuffle import Order
from layershuffle.evaluation.metrics import OrderMetrics
from layershuffle.evaluation.scoring import run_orders
from layershuffle.models.widen import Folded, _scaled
from layershuffle.training.module import FineTuner
from layershuffle.training.objectives.classification import position_cross_entropy
from layershuffle.training.step_file import BatchPlace


class Crossings(TorchDispatchMode):
    """Notes the operations for which the host would wait, and those whose tensors are on two devices."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket._qualified_op_name
        tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        waits = name in ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero")
        if waits or len(devices) > 1:
            self.operations.add(name)
        return result


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_copied_beside_the_computing():
    module = FineTuner("vit_tiny_patch16_224", 10, timm_args=SMALL)
    device = torch.device("cuda")
    batches = []
    for number in range(8):  # all pixels and labels of a batch are its number
        images = torch.full((64, 1, 512, 512), number).pin_memory()
        labels = torch.full((64,), number)
        batches.append((images, labels))

    copies = [module.transfer_batch_to_device(batch, device, 0) for batch in batches]
    means = [(images.float().mean(), labels.float().mean()) for images, labels in copies]

    for number, (mean_of_images, mean_of_labels) in enumerate(means):
        assert float(mean_of_images) == number
        assert float(mean_of_labels) == number


@pytest.fixture
def fake_gpu(monkeypatch):
    """Tensors may be "cuda", and bf16 autocast believes it."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("position", ["none", "encode", "predict"])
def test_everything_is_on_the_gpu_in_the_right_type_and_nothing_waits_for_it(fake_gpu, position):
    module = FineTuner("vit_tiny_patch16_224", 10, position=position, timm_args=SMALL)
    orders = [Order("0 1"), Order("1 2 (0|3)"), Order("0a 1f")]
    bf16 = torch.autocast("cuda", torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to("cuda")
        raw = torch.empty(6, 1, 20, 20, dtype=torch.uint8, device="cuda")
        labels = torch.empty(6, dtype=torch.int64, device="cuda")
        metrics = OrderMetrics(len(orders)).to("cuda")

        with Crossings() as crossings, bf16:
            images, _ = module.on_after_batch_transfer((raw, labels), 0)
            output = module.model(images, module.orders.sample(0))
            loss = F.cross_entropy(output.logits, labels)
            if output.position_logits is not None:
                loss = loss + position_cross_entropy(output).sum()
            module._first_non_finite.note(loss, BatchPlace(3, 0, 3))
        assert images.dtype == torch.float32
        assert output.logits.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        assert loss.device.type == "cuda"

        with Crossings() as crossings_evaluating, torch.inference_mode(), bf16:
            outputs = [output for _, output in run_orders(module.model.eval(), images, orders)]
            metrics.update(0, outputs, labels)

    assert not crossings.operations
    assert not crossings_evaluating.operations


@pytest.mark.parametrize("has_scale", [True, False])
def test_what_is_merged_stays_on_the_gpu(has_scale):
    with FakeTensorMode():
        weight = torch.empty(4, 3, dtype=torch.float64, device="cuda")
        matrix = Folded(weight, weight[:, 0])
        scale = torch.empty(4, device="cuda") if has_scale else None
        scaled = _scaled(matrix, scale, 1 / 3)
    for value, original in zip(scaled, matrix):
        assert value.device == original.device
        assert value.dtype == original.dtype
        assert value.shape == original.shape
