"""The words from which options, and arguments of the Python API, choose.

They stand apart from the functions that take them, so that a command knows its options without importing torch.
"""

from typing import Literal

Split = Literal["test", "val"]
"""Which images of a data set to use."""
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "auto"]
"""The precision of the forward pass; "auto" measures whether 32-true or bf16-mixed is faster for a model here."""
Classifier = Literal["own", "neighbours"]
"""What classifies: the model's own classifier, or the training images whose features are nearest."""
Subject = Literal["representations", "contributions"]
"""What an analysis looks at in the layers."""
Strategy = Literal["greedy", "climb", "well-trained"]
"""How a search finds an order."""
ProgramFormat = Literal["torch-export", "onnx", "aoti"]
"""The formats of programs that run without this package."""
ExportFormat = Literal["timm", ProgramFormat]
"""The formats of exported models."""
Normalise = Literal["inside", "beside"]
"""Where images of programs are normalised: inside, they take uint8 pixels; beside, what their caller has normalised."""
Quantize = Literal["int8", "fp16"]
"""How a program is made smaller: by 8-bit integers in products with weights, or by weights in half precision."""
Target = Literal["cpu", "cuda"]
"""The device that programs run on."""
Wire = Literal["float32", "bf16", "int8"]
"""In which form tokens travel to the nodes of a cluster and back."""

Accelerator = Literal["auto", "cpu", "gpu"]
"""Where the nodes of a cluster compute: "auto" is on its GPUs, if there are any."""
