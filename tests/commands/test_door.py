"""The `layershuffle` command: its subcommands, configs by name, both spellings of flags, and `list`."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import DIGITS, QUIET, ROOT, configs, fails, train
from jsonargparse import Namespace

from layershuffle import config_files
from layershuffle.commands import COMMANDS, main
from layershuffle.commands.errors import run
from layershuffle.commands.experiment import experiment_command
from layershuffle.commands.list import list_command
from layershuffle.commands.parser import Parser
from layershuffle.commands.train import TrainParser
from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.renamed_options import RENAMED
from layershuffle.type_hints import class_names
from layershuffle.version import __version__

TINY = ["mini_digits", "digits", "cpu", *QUIET, "--model.timm_args.depth=2", "--trainer.max_steps=1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def python(code):
    """Run this code in a process of its own, in which nothing is imported yet."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def resolved_text(capsys, *args):
    """What a train command comes down to: the YAML that ``--print_config`` prints."""
    with pytest.raises(SystemExit) as stop:
        train([*args, "--print_config"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def resolved(capsys, *args):
    """What a train command comes down to: the content of the YAML that ``--print_config`` prints."""
    return yaml.safe_load(resolved_text(capsys, *args))


# --- The command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["train", "mini_digits", "digitz"], "digitz"),
        (["evaluate", "runs/version_0/last.ckpt"], "runs/version_0/last.ckpt"),
        (["linear-probe", "last.ckpt", "digits"], "last.ckpt"),
        (["depth", "mini_glyphs", "digitz"], "digitz"),
        (["export", "mini_glyphs", "exported", "digitz"], "digitz"),
    ],
)
def test_names_of_nothing_are_refused_before_torch_is_imported(args, named):
    code = f"""if True:
        import sys
        from layershuffle.commands import main
        try:
            main({args})
        except SystemExit as stop:
            print(stop.code)
        print("imported", sorted({{"torch", "lightning", "timm"}} & sys.modules.keys()))
    """
    error, imported = python(code).stdout.splitlines()
    assert error.startswith("error: there is no ")
    assert named in error
    assert imported == "imported []"


@pytest.mark.parametrize(
    ("args", "first_line"),
    [
        (["--help"], "usage: layershuffle COMMAND ..."),
        (["--version"], f"layershuffle {__version__}"),
        (["list"], "models"),
        ([], "usage: layershuffle COMMAND ..."),
    ],
)
def test_what_needs_no_model_imports_no_torch(args, first_line):
    code = f"""if True:
        import sys
        from layershuffle.commands import main
        main({args})
        print(sorted({{"torch", "lightning", "numpy", "jsonargparse"}} & sys.modules.keys()))
        """
    process = python(code)
    assert process.stdout.endswith("\n[]\n"), process.stderr
    assert process.stdout.splitlines()[0] == first_line


def test_help_imports_nothing_heavy():
    """Only the help of check-gpu does: it lists the checks, and so imports them."""
    code = """if True:
        import sys
        from layershuffle.commands import COMMANDS, main
        heavy = {"torch", "lightning", "timm", "torchvision", "matplotlib", "sklearn", "ray", "wandb", "transformers"}
        for command in COMMANDS:
            if command != "check-gpu":
                try:
                    main([command, "--help"])
                except SystemExit as stop:
                    assert stop.code == 0
                print("imported by", command, sorted(heavy & sys.modules.keys()))
        """
    process = python(code)
    imported = [line for line in process.stdout.splitlines() if line.startswith("imported by")]
    expected = [f"imported by {command} []" for command in COMMANDS if command != "check-gpu"]
    assert imported == expected, process.stderr


def test_help_names_every_command_within_80_columns(capsys):
    main(["--help"])
    said = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(capsys, name):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: layershuffle {name} ")


def test_dashes_do_not_make_options_alike():
    assert config_files.nearest("--keep", ["--seed"]) == ""
    assert config_files.nearest("--sed", ["--seed"]) == " (did you mean --seed?)"


def test_an_unknown_command_suggests_the_nearest():
    with pytest.raises(SystemExit, match=r"^error: .*evalute \(did you mean evaluate\?\)"):
        main(["evalute"])
    with pytest.raises(SystemExit, match="^error: .* x: .*train, "):
        main(["x"])


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_a_closed_pipe_ends_a_command_quietly(options):
    """As `layershuffle list | head -3` does. With -u, Python writes every line at once."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *options, "-m", "layershuffle", "list"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert process.stderr == b""
    assert process.returncode == 128 + signal.SIGPIPE  # as a shell reports a process that the signal ended


def test_another_broken_pipe_is_no_quiet_end():
    def write():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(write)


# --- Configs by name ----------------------------------------------------------------------------------------


def test_names_are_configs_and_later_ones_and_flags_win(capsys):
    names = ["vit_b16", "data/cifar100", "layerdrop", "layershuffle_position", "cpu", "gpu"]
    text = resolved_text(capsys, *names, "--model.position=predict")
    assert text.startswith(
        "# layershuffle train vit_b16 data/cifar100 layerdrop layershuffle_position cpu gpu --model.pos"
    )
    config = yaml.safe_load(text)
    assert config["model"]["name"] == "vit_base_patch16_224.orig_in21k_ft_in1k"
    assert config["model"]["sampler"]["class_path"] == "layershuffle.orders.Shuffle"
    assert config["model"]["position"] == "predict"
    assert config["data"]["init_args"]["dataset"] == "CIFAR100"
    assert config["trainer"]["accelerator"] == "gpu"

    with_paths = configs(
        "model/vit_b16",
        "data/cifar100",
        "method/layerdrop",
        "method/layershuffle_position",
        "trainer/cpu",
        "trainer/gpu",
    )
    assert resolved(capsys, *with_paths, "--model.position=predict") == config


def test_ones_own_configs_come_first_and_paths_are_taken_as_they_are(tmp_path, capsys):
    own = tmp_path / "configs" / "method"
    own.mkdir(parents=True)
    (own / "layershuffle.yaml").write_text(
        "# configs/method/layershuffle.yaml\n# Mine.\nmodel: {sampler: {class_path: LayerDrop, init_args: {p: 0.3}}}\n"
    )
    (tmp_path / "other.yaml").write_text("model: {position: encode}\n")

    model = resolved(capsys, "mini_digits", "digits", "cpu", "layershuffle", "other.yaml")["model"]
    assert model["sampler"] == {"class_path": "layershuffle.orders.LayerDrop", "init_args": {"p": 0.3}}
    assert model["position"] == "encode"
    assert config_files.find("baseline") == ROOT / "configs/method/baseline.yaml"

    list_command(["methods"])
    said = capsys.readouterr().out
    assert re.search(r"^  layershuffle +Mine\.$", said, re.MULTILINE)
    assert re.search(r"^  baseline +Ordinary", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("vit_b61", r"vit_b61 \(did you mean vit_b16\?\)"),
        ("model/vit_16", r"did you mean model/vit_b16\?"),
        ("xyzzy", "xyzzy"),
        ("quickstart", "no config named quickstart"),
        ("experiment/mini", "there is no config named experiment/mini"),
        ("sweep", "there is no config named sweep"),
        ("nowhere.yaml", "nowhere.yaml"),
        ("notes.md", "notes.md"),
    ],
)
def test_names_that_are_none(capsys, name, complaint):
    Path("notes.md").touch()
    assert re.search(complaint, fails(capsys, train, "mini_digits", name))


def test_an_ambiguous_name_names_the_candidates(tmp_path, capsys):
    for folder in ("model", "data"):
        (tmp_path / "configs" / folder).mkdir(parents=True)
        (tmp_path / "configs" / folder / "mine.yaml").write_text("{}\n")
    line = fails(capsys, train, "mini_digits", "mine")
    assert "data/mine, model/mine" in line
    assert config_files.find("model/mine").as_posix() == "configs/model/mine.yaml"


def test_the_names_of_a_study_come_after_its_checkpoint():
    parser = Parser()
    parser.add_argument("checkpoint")
    parser.add_argument("--config", action="config")
    parser.add_argument("--trainer", type=dict)
    parser.add_argument("--keep", nargs="+", default=None)
    args = parser.expanded(["vit_b16", "cpu", "--keep", "3", "gpu"])
    assert args == ["vit_b16", f"--config={ROOT}/configs/trainer/cpu.yaml", "--keep", "3", "gpu"]
    assert parser.expanded(args) == args
    config = parser.parse_args(args)
    assert config.checkpoint == "vit_b16"
    assert config.trainer["accelerator"] == "cpu"
    assert config.keep == ["3", "gpu"]


def test_the_saved_config_says_what_the_run_was_made_of_and_resumes(tmp_path):
    arguments = [*TINY, "--resume"]
    trainer = train(arguments)
    text = (tmp_path / "runs/version_0/config.yaml").read_text()
    assert text.startswith(f"# layershuffle train {' '.join(arguments)}\n")
    assert trainer.global_step == 1

    # The same command finds that the run is at its end, and makes no other one.
    assert train(arguments).global_step == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["version_0"]

    from_saved_config = train(["--config=runs/version_0/config.yaml", "--resume=false"])
    assert from_saved_config.model.model.depth == 2
    assert (tmp_path / "runs/version_1/config.yaml").exists()


def test_experiments_are_found_by_name_too(tmp_path, capsys):
    experiment_command(["mini", "--dry-run"])
    assert "29 runs in experiments/mini" in capsys.readouterr().out
    names = ", ".join(sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml")))
    line = fails(capsys, experiment_command, "minni")
    assert f"there is no experiment minni (did you mean mini?): give a YAML file, or one of {names}" in line
    assert "--seeds" in fails(capsys, experiment_command, "mini", "--seeds=-1")

    # A file of one's own comes before that of the package.
    (tmp_path / "configs/experiment").mkdir(parents=True)
    quickstart = (ROOT / "configs/experiment/quickstart.yaml").read_text()
    (tmp_path / "configs/experiment/mini.yaml").write_text(quickstart)
    experiment_command(["mini", "--dry_run"])
    assert "5 runs in experiments/mini" in capsys.readouterr().out


def shown_commands():
    """Every train command in the pages, also those that are marked as taking too long to be run."""
    pages = [ROOT / "README.md", *(ROOT / "docs/guides").glob("*.md"), *(ROOT / "docs/findings").glob("*.md")]
    pages.remove(ROOT / "docs/guides/extend.md")  # whose commands need the code on the page
    for page in pages:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            with_continued_lines = block.replace("\\\n", " ")
            for line in with_continued_lines.splitlines():
                if line.startswith("layershuffle train "):
                    _, _, *args = shlex.split(line)
                    yield pytest.param(args, id=line[:70])


@pytest.mark.parametrize("args", shown_commands())
def test_the_train_commands_of_the_pages_are_understood(capsys, args):
    assert resolved(capsys, *args)["data"]["class_path"].startswith("layershuffle.data.")


# --- Flags --------------------------------------------------------------------------------------------------


def test_dashes_and_underscores_are_the_same(capsys):
    dashes = ["--save-every-n-steps=3", "--trainer.max-epochs", "7", "--data.batch-size=9"]
    underscores = ["--save_every_n_steps=3", "--trainer.max_epochs", "7", "--data.batch_size=9"]
    config = resolved(capsys, *DIGITS, *dashes)
    assert config == resolved(capsys, *DIGITS, *underscores)
    assert config["trainer"]["max_epochs"] == 7


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--trainer.max_step=5"], r"--trainer.max_step \(did you mean --trainer.max_steps\?\)"),
        (["--trainer.max_epohs", "1"], r"--trainer.max_epohs \(did you mean --trainer.max_epochs\?"),
        (["--model.optimizer.lrr=1"], r"--model.optimizer.lrr: .*\(did you mean lr\?\)"),
        (["--data.rot=x"], r"--data.rot: "),
        (["--model.sampler=Shufle"], r"Shufle \(did you mean Shuffle\?\): choose from .*LayerDrop"),
        (["--data=Digitz"], r"--data: .*Digitz \(did you mean Digits\?\)"),
        (["--model.optimizer=AdmW"], r"--model.optimizer: .*AdmW \(did you mean AdamW\?\)"),
        (["--model.optimizer", "AdmW"], r"--model.optimizer: .*AdmW \(did you mean AdamW\?\)"),
        (["--trainer.callbacks=EarlyStoping"], r"EarlyStoping \(did you mean EarlyStopping\?\)"),
        (["--model.optimizer.lr=fast"], r"--model.optimizer.lr can't be fast"),
        (["--model.position=encod"], r"--model.position is one of none, encode, predict, not encod"),
        (["--trainer.max_epochs=x"], r"--trainer.max_epochs is a whole number, not x"),
        (["--save_every_n_steps=-2"], r"--save_every_n_steps is a whole number above 0, not -2"),
        (["--data.crop_pct=big"], r"--data.crop_pct is a number, not big"),
        (["--seed=-1"], r"--seed is a whole number of at least 0 and at most 4294967295, not -1"),
        # Other tests may have defined sets of their own, whose names stand among these.
        (["--data=digits"], r"choose from Digits, .*, PackedFolders, .*TorchvisionImages"),
        (["--resume", "layershuffle"], "layershuffle .*configs before the first option"),
        (["--trainer.callbacks=BackboneFinetuning"], "BackboneFinetuning .*optimizer"),
        (["--trainer.callbacks=LearningRateFinder"], "LearningRateFinder .*learning rate"),
        (["--trainer.devices=999"], "--trainer.devices 999 .*[0-9]+ CPU cores"),
    ],
)
def test_what_is_misspelt_or_cannot_be_is_a_one_line_error(capsys, options, complaint):
    assert re.search(complaint, fails(capsys, train, *TINY, *options))


@pytest.mark.parametrize("option", ["config", "data", "trainer", "trainer.strategy", "model.sampler"])
def test_a_pipe_into_which_nobody_writes_is_refused_where_options_are_read(capsys, tmp_path, option):
    """jsonargparse opens a file in place of the values of a group or a class, too."""
    pipe = tmp_path / "options.yaml"
    os.mkfifo(pipe)
    assert f"--{option} {pipe}" in fails(capsys, train, *TINY, f"--{option}", str(pipe))


def test_options_of_earlier_versions_are_told_their_new_names(capsys):
    """All of the table, on the command line and in configs, and nothing that is an option today."""
    for option, new_name in RENAMED["train"].items():
        # The table ends groups of options with a dot, and names one option together with a value.
        name, _, value = option.rstrip(".").partition(" ")
        assert new_name in fails(capsys, train, *TINY, f"--{name}", value or "x")
        if not value:
            # In a config, model.a: x is {model: {a: x}}.
            content = "x"
            for part in reversed(name.split(".")):
                content = {part: content}
            Path("old.yaml").write_text(yaml.safe_dump(content))
            assert new_name in fails(capsys, train, "old.yaml", *TINY)
    assert "--model.trainable.lora" in fails(capsys, train, *TINY, "--model.lora.rank=3")
    assert "is now" not in fails(capsys, train, *TINY, "--model.schedule.shape=linar")


@pytest.mark.parametrize("command", [command for command in RENAMED if command != "train"])
def test_commands_tell_the_new_names_of_their_options(command):
    positional_arguments = {"predict": ["x", "y"], "export": ["x", "y"], "simulate": [], "check-gpu": []}
    for option, new_name in RENAMED[command].items():
        with pytest.raises(SystemExit) as stop:
            main([command, *positional_arguments.get(command, ["mini"]), f"--{option}", "3"])
        assert new_name in str(stop.value.code)


def test_an_abstract_class_is_no_choice():
    names = class_names(ImageData)
    assert "ImageFolders" in names
    assert "SplitImages" not in names


def test_under_the_line_stands_what_jsonargparse_says(capsys):
    wrong = [*TINY, "--model.augmentation.scale=3"]
    with pytest.raises(UserError, match=r"--model.augmentation.scale can't be 3") as error:
        train(wrong)
    (note,) = error.value.__notes__
    assert "tuple[float, float]" in note

    with pytest.raises(SystemExit) as stop:
        run(lambda: train(wrong))
    first_line, *others = str(stop.value).splitlines()
    assert first_line == f"error: {error.value}"
    assert others == [f"  {line}" for line in note.splitlines()]


@pytest.mark.parametrize(
    ("args", "values"),
    [
        (["--model.compile"], {"compile": True}),
        (["--model.compile", "--model.checkpoint_layers", "true"], {"compile": True, "checkpoint_layers": True}),
        (["--model.compile", "false", "--model.pretrained"], {"compile": False, "pretrained": True}),
    ],
)
def test_what_is_true_or_false_needs_no_value(capsys, args, values):
    model = resolved(capsys, *TINY, *args)["model"]
    assert {name: model[name] for name in values} == values


def test_what_is_true_or_false_in_a_class_needs_no_value_either(capsys):
    config = resolved(capsys, *TINY, "--data.balanced", "--data.val_fraction=0.2")
    assert config["data"]["init_args"]["balanced"] is True


def test_what_follows_a_flag_may_be_a_positional_argument():
    parser = Parser()
    parser.add_argument("source")
    parser.add_argument("--whole", type=bool, default=False)
    assert parser.parse_args(["--whole", "folder"]) == Namespace(source="folder", whole=True)
    assert parser.parse_args(["--whole", "false", "folder"]) == Namespace(source="folder", whole=False)


def test_a_class_may_come_after_its_arguments(capsys):
    data = ["--data.val_fraction=0.2", "--data", "Digits"]
    sampler = ["--model.sampler.p=0.3", "--model.sampler=LayerDrop"]
    config = resolved(capsys, "mini_digits", "cpu", *data, *sampler, "--trainer.max_epochs=1")
    assert config["data"]["init_args"]["val_fraction"] == 0.2
    assert config["model"]["sampler"]["init_args"] == {"p": 0.3}


def test_the_help_of_train_is_short_and_has_more_on_request(capsys):
    def help_text(*args):
        with pytest.raises(SystemExit) as stop:
            train(["--help", *args])
        assert stop.value.code == 0
        return capsys.readouterr().out

    short = help_text()
    assert len(short.splitlines()) < 70
    assert max(map(len, short.splitlines())) <= 80
    assert "--trainer.max_epochs " in short
    assert "--trainer.barebones" not in short
    everything = help_text("all")
    assert "--trainer.barebones" in everything

    # What the short help names is an option. It has words of its own, since Lightning's take seconds to import.
    names = re.findall(r"^  --(\S+)", short, re.MULTILINE)
    assert names == list(TrainParser.common)
    for name in names:
        assert re.search(rf"--{re.escape(name)}\b", everything), name

    of_trainer = help_text("trainer")
    assert "--trainer.barebones" in of_trainer
    options, _, _ = of_trainer.partition("--help all")  # what follows names other groups of options
    assert "--model" not in options


def test_dashes_in_values_stay(capsys):
    config = resolved(capsys, *DIGITS, "--trainer.default-root-dir=a-b", "--ckpt-path", "c-d.ckpt")
    assert config["trainer"]["default_root_dir"] == "a-b"
    assert config["ckpt_path"] == "c-d.ckpt"


# --- list ---------------------------------------------------------------------------------------------------


def test_list_has_every_section_within_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    list_command([])
    said = capsys.readouterr().out
    sections = [line for line in said.splitlines() if line and not line.startswith(" ")]
    assert sections == [
        "models",
        "data",
        "methods",
        "trainers",
        "optimizers",
        "recipes",
        "experiments",
        "protocols",
        "orders",
        "samplers",
    ]
    assert max(map(len, said.splitlines())) <= 80
    for name in ("vit_b16", "digits", "layerdrop", "gpu", "mini", "paper", "landscape", r"sandwich\(k\)", "Shuffle"):
        assert re.search(rf"^  {name} +\w", said, re.MULTILINE), name


def test_list_of_one_section(capsys):
    list_command(["methods"])
    said = capsys.readouterr().out
    assert said.startswith("methods\n")
    named = re.findall(r"^  (\w+)", said, re.MULTILINE)
    assert len(named) == len(list((ROOT / "configs/method").glob("*.yaml")))
    assert said.count("(") == said.count(")")  # No sentence is cut off at an abbreviation.

    with pytest.raises(UserError, match="--nosuch"):
        list_command(["--nosuch"])
    with pytest.raises(UserError, match=r"method .*\(did you mean methods\?\)"):
        list_command(["method"])


def test_on_a_narrow_terminal_summaries_stand_below_their_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    list_command(["orders"])
    said = capsys.readouterr().out
    assert "\n  backwards\n    All layers in reverse\n    sequence," in said
    assert max(map(len, said.splitlines())) <= 30


# --- Completion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("layershuffle ev", {"evaluate"}),
        ("layershuffle train vit", {"vit_b16"}),
        ("layershuffle train vit_b16 layershuffle_p", {"layershuffle_position", "layershuffle_predict"}),
        # The options of train are those of Lightning as well, which takes seconds to import.
        pytest.param("layershuffle train vit_b16 --trainer.max_e", {"--trainer.max_epochs"}, marks=pytest.mark.slow),
    ],
)
def test_the_shell_completes(tmp_path, line, expected):
    """The variables are those by which bash and argcomplete ask for completions when TAB is pressed."""
    completions = tmp_path / "completions"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(completions),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": str(ord("\t")),
    }
    subprocess.run([sys.executable, "-m", "layershuffle"], capture_output=True, env=environment)
    words = completions.read_text().split("\n")
    # Options end with an equals sign, after which their value is to be typed.
    assert {word.strip().partition("=")[0] for word in words} == expected
