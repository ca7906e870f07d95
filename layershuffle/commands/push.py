"""Uploads an exported folder to the Hugging Face hub."""

from pathlib import Path

from layershuffle.checkpoints.exported import DESCRIPTION_FILE
from layershuffle.checkpoints.programs import MANIFEST
from layershuffle.commands.parser import Parser
from layershuffle.errors import UserError, is_network_error
from layershuffle.version import __version__


def push_command(args: list[str] | None = None) -> None:
    """Upload as ``args`` say, by default those of the process."""
    parser = Parser(
        prog="layershuffle push",
        description="Upload a folder of layershuffle export to the Hugging Face hub, as whoever is logged in there.",
    )
    parser.add_argument("folder", type=Path, help="what layershuffle export wrote")
    parser.add_argument("name", help="the model's name on the hub, USER/NAME")
    parser.add_argument("--public", action="store_true", help="let everybody see a new model (default: only you can)")
    parser.add_argument("--message", default="Upload with layershuffle", help="of the commit")
    config = parser.parse_args(args)
    if not any((config.folder / name).is_file() for name in (DESCRIPTION_FILE, MANIFEST)):
        raise UserError(f"{config.folder} is not a folder of layershuffle export")
    from huggingface_hub import HfApi

    api = HfApi(library_name="layershuffle", library_version=__version__)
    try:
        name = api.create_repo(config.name, private=not config.public, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, folder_path=config.folder, commit_message=config.message)
        private = api.model_info(name).private
    except Exception as error:
        if sentence := _sentence(error, config.name):
            raise UserError(sentence) from error
        raise
    print(f"uploaded to {api.endpoint}/{name}, which {'only you' if private else 'everybody'} can see")
    if private and config.public:
        print("note: it was there already and is private; its settings on the hub can change that")


def _sentence(error: Exception, name: str) -> str | None:
    """What the hub objects to, or None if it isn't the hub."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub doesn't know who you are: run `hf auth login`, or set HF_TOKEN to a token that may write"
    if status == 403:
        return f"the hub doesn't let you write to {name}: use a token that may write, and a USER that is you or yours"
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    if status:
        return f"the hub refused {name} (status {status}): {reason}"
    if type(error).__name__ == "HFValidationError":
        return f"{name} can't be a name on the hub, write USER/NAME: {reason}"
    if is_network_error(error):
        return f"the hub can't be reached ({type(error).__name__}: {reason}): try again when there is a network"
    return None
