"""Exports a checkpoint for others."""

from pathlib import Path

from layershuffle.checkpoints.export import LOAD, export, why_only_here
from layershuffle.checkpoints.loading import load
from layershuffle.commands.parser import Parser
from layershuffle.errors import UserError
from layershuffle.results.record import Results


def export_command(args: list[str] | None = None) -> None:
    """Export as ``args`` say, by default those of the process."""
    parser = Parser(
        prog="layershuffle export",
        description="Write a folder with safetensors, a configuration that timm's local-dir: and hf-hub: loaders read, "
        "and a model card.",
    )
    parser.add_argument("checkpoint", help="a checkpoint of layershuffle train, or a merged one")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="results files, for the model card")
    parser.add_argument("--license", default="apache-2.0", help="of the weights, for the model card")
    config = parser.parse_args(args)
    subject = load(config.checkpoint)
    if "method" not in subject.record:
        raise UserError(f"{config.checkpoint} is not a checkpoint of layershuffle train")
    results = [Results.load(path) for path in config.results]
    export(subject.model, subject.record, subject.data, config.folder, results, config.license)
    if why := why_only_here(subject.model):
        print(f"exported to {config.folder}: {LOAD}('{config.folder}')")
        print(f"note: timm can't run this model, because {why}")
    else:
        print(f"exported to {config.folder}: timm.create_model('local-dir:{config.folder}', pretrained=True)")
        if subject.model.encoding:
            print(f"note: timm's model lacks the position encoding; {LOAD} returns it too")
