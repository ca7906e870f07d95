"""What the tests of experiments share."""

TINY = {
    "model.timm_args": {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "data.train_images": 128,
    "data.test_images": 50,
}


def settings(*configs, **options):
    """Settings as an experiment's file has them; in the names of options, ``__`` stands for a dot."""
    return {"configs": [*configs], "options": {name.replace("__", "."): value for name, value in options.items()}}
