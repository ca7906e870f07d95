"""Runs a compiled layer of ViT-B/16 on the fake GPU, and prints the names of the kernels in JSON."""

import json

import torch
from fake_gpu.execute import expect_nonsense
from fake_gpu.watch import Notes

from layershuffle.gpu_check.roofline import Shape
from layershuffle.models import create_model


def main() -> None:
    """Run the layer forward and backward, once to compile it and once to take notes."""
    expect_nonsense()
    torch.set_default_device("cuda")
    shape = Shape()
    model = create_model("vit_base_patch16_224", shape.classes, depth=1)
    model.compile()
    tokens = torch.empty(shape.batch, shape.tokens, shape.width, requires_grad=True)
    gradient = torch.empty_like(tokens)

    notes = Notes()
    kernels = {}
    for _ in ("compile", "take notes"):
        # Otherwise gradients would be added up.
        model.zero_grad()
        tokens.grad = None
        notes.begin()
        with torch.autocast("cuda", torch.bfloat16):
            output = model.backbone.run(model.layers[0], tokens, None)
        kernels["forward"] = notes.end()
        notes.begin()
        output.backward(gradient)
        kernels["backward"] = notes.end()
    print(json.dumps(kernels))


if __name__ == "__main__":
    main()
