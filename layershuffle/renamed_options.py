"""The options that earlier versions called otherwise: an error message names what they are called now."""

RENAMED = {
    "train": {
        "seed_everything": "--seed",
        "fastest_precision": "--precision auto",
        "resume auto": "--resume",
        "model.schedule": "--model.schedule.shape",
        "model.warmup_steps": "--model.schedule.warmup_steps",
        "model.label_smoothing": "--model.objective.label_smoothing",
        "model.class_weights": "--model.objective.class_weights",
        "model.position_loss": "--model.objective.position_loss",
        "model.distillation.": "--model.objective Distillation, with --model.objective.teacher",
        "model.instancewise.": "--model.objective InstanceWise, with --model.objective.NAME",
        "model.trainable": "--model.trainable.only",
        "model.lora.": "--model.trainable.lora",
        "model.layer_decay": "--model.trainable.layer_decay",
        "model.decay_norms": "--model.trainable.decay_norms",
    },
    "evaluate": {
        "orders": "--random_orders for a number, and --order for an order",
        "keep": "--depths",
        "log": "--recorded_orders",
    },
    "predict": {"orders": "--random_orders"},
    "depth": {"draws": "--random_orders"},
    "export": {"split": "--per_layer", "device": "--target"},
    "serve": {"output": "--answers", "window": "--most_running", "log": "--event_log"},
    "simulate": {"nodes": "--cluster_sizes", "first_seed": "--seeds, which names each seed", "log": "--event_log"},
    "experiment": {"scale": "the first word", "cell": "--run", "output": "--folder"},
    "report": {"output": "--folder"},
    "check-gpu": {"device": "--accelerator", "output": "--folder"},
}
"""What to write for an option of earlier versions, by the command and the option without its dashes.

``model.lora.`` stands for ``model.lora`` and all that begins like this, and ``resume auto`` for an option with a value.
"""


def new_name(prog: str, option: str) -> str | None:
    """What to write for an option of an earlier version; None if there was none of this name.

    Args:
        prog: the command, such as "layershuffle train".
        option: the option, with or without its dashes.
    """
    name = option.lstrip("-")
    for old, new in RENAMED.get(prog.removeprefix("layershuffle "), {}).items():
        if name == old or (old.endswith(".") and f"{name}.".startswith(old)):
            return new
    return None
