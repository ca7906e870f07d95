"""What users have from version 0.1 works: saved configs, and the import that stands in model cards."""

import shutil
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import torch
from helpers import ROOT

from layershuffle import data
from layershuffle.checkpoints.loading import RECORD
from layershuffle.commands.train import train

SAVED = ROOT / "tests/config_of_version_0.1.yaml"
"""The config.yaml of a run of version 0.1, as it was saved."""


def test_a_saved_config_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = train([f"--config={SAVED}", "--resume=null"])
    assert trainer.global_step == 2
    assert trainer.lightning_module.method == "reduced-depth-2"
    assert Path("runs/version_0/metrics.csv").is_file()


def test_the_same_command_goes_on_with_an_old_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    configs = ("model/mini_digits", "data/digits", "trainer/cpu", "optimizer/mini", "method/reduced_depth")
    command = [f"--config={ROOT}/configs/{name}.yaml" for name in configs]
    command += ["--model.timm_args.depth=3", "--data.train_images=200", "--trainer.enable_progress_bar=false"]
    command += ["--resume=auto", "--save_every_n_steps=2", "--model.sampler.init_args.k=2", "--trainer.max_steps=2"]
    train(command)
    shutil.copy(SAVED, "runs/version_0/config.yaml")
    last = Path("runs/version_0/checkpoints/last.ckpt")
    content = torch.load(last, weights_only=True)
    assert content[RECORD]["model"].pop("order") == "0 1"  # version 0.1 didn't record it
    content[RECORD]["model"]["positions"] = None
    torch.save(content, last)
    train(command)
    assert "going on with runs/version_0\n" in capsys.readouterr().out


def test_data_classes_are_found_where_saved_configs_name_them():
    found = [resolve_name(f"layershuffle.data.{name}") for name in ("packed.PackedFolders", "decoding.DecodedImages")]
    assert found == [data.PackedFolders, data.DecodedImages]


def test_the_import_of_a_model_card_works_without_loading_what_it_does_not_need():
    code = "import sys, layershuffle; assert 'lightning' not in sys.modules; from layershuffle.loading import load"
    code += "; import layershuffle.checkpoints.loading as new; assert load is new.load"
    subprocess.run([sys.executable, "-c", code], check=True)
