"""The runs that are watched on the fake GPU."""

STEPS = 10
"""Training steps of a run."""
FIRST, LAST = 3, 8
"""The steps after which the watch begins and ends."""
BATCHES = 4
"""Batches of validation and of evaluation. The watch begins after the first one."""

SMALL_28 = "--model.timm_args={img_size: 28, depth: 3, in_chans: 1}"
SMALL_32 = "--model.timm_args={img_size: 32, depth: 3, in_chans: 1}"

TRAININGS: dict[str, list[str]] = {
    "baseline": ["baseline"],
    "layershuffle": ["layershuffle"],
    "position": ["layershuffle_position"],
    "predict": ["layershuffle_predict"],
    "sublayers": ["layershuffle_sublayers"],
    "layers left out": ["layerdrop", "--model.budget=layer_executions"],
    "summed groups": ["any_width"],
    "averaged groups": ["random_groups"],
    "older states": ["random_schedule"],
    "four orders a batch": ["--model.orders_per_batch=4"],
    "accumulated batches": ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=20"],
    "averaged weights": ["finetune", "--model.augmentation.scale=null", "--model.augmentation.padding=0.125"],
    "class weights": ["--model.objective.class_weights=balanced", "--model.objective.label_smoothing=0.1"],
    "data on the host": ["--data.on_device=false", "--data.workers=1"],
    "muon": ["muon"],
    "lora": ["lora"],
    "ddp on one device": ["ddp", "layerdrop", "--trainer.devices=1"],
    "fsdp on one device": ["fsdp", "--trainer.devices=1", "--trainer.strategy.data_parallel_size=1"],
    "DINOv3": ["--model.name=vit_small_patch16_dinov3", SMALL_32],
    "EVA-02": ["--model.name=eva02_tiny_patch14_224", SMALL_28],
    "distilled DeiT": ["--model.name=deit_tiny_distilled_patch16_224", SMALL_32],
}
"""Configs and options of trainings in bf16, by what is special about them."""

CHOOSING = {"images choose": ["instancewise", "--model.timm_args.depth=12"]}  # Its orders are of 12 layers.
"""Waits once for each batch of its validation: for the sizes of the groups of images that choose alike."""

COMPILED: dict[str, list[str]] = {
    "compiled": ["layershuffle_position", "--model.compile=true"],
}
"""Trainings with compiled layers: inductor and Triton compile for the GPU, which takes its time."""

FAULTS: dict[str, str] = {
    "item": "waits",
    "synchronize": "waits",
    "float32": "float32",
    "pageable": "pageable",
    "other device": "error",
}
"""Faults that can be put into a training step, and the kind of event by which the watch must find them."""

CHECKS = {"check waits": "", "check waits, item": "item"}
"""``check-gpu``'s own check for waits, and the fault in each training step that it must find."""

NODE = "node of a cluster"
"""The steps of a model on a node, one after the other."""
NODE_STEPS = 8

EVALUATIONS = ("none", "encode", "predict", "choices")
"""Evaluations of many orders at once, by the model's use of position, and one whose images choose their order."""
