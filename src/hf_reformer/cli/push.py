"""`hf-reformer push`: a model with its card to the Hub."""

import argparse


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser("push", help="push a model with its card to the Hub", description=__doc__)
    parser.add_argument("model", help="folder of a run or model")
    parser.add_argument("repository", metavar="OWNER/NAME", help="on the Hub; it is made where there is none")
    parser.add_argument("--private", action="store_true", help="make a repository that only you see")
    parser.add_argument("--with-code", action="store_true", help="and the model's source, for trust_remote_code")
    parser.add_argument("--message", default="A model of hf-reformer", help="of the commit (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command; every file of the model's folder goes into one commit."""
    import shutil
    import tempfile
    from pathlib import Path

    from huggingface_hub import HfApi

    from .loading import model_folder

    if not Path(arguments.model).is_dir():
        raise ValueError(f"model {arguments.model!r} is no folder; allowed is the folder of a run or model")
    folder = model_folder(arguments.model)
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.with_code:
            folder = shutil.copytree(folder, Path(temporary, "model"))
            add_code(folder)
        api = HfApi()
        repository = api.create_repo(arguments.repository, private=arguments.private or None, exist_ok=True).repo_id
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=arguments.message)
    print(commit.commit_url)
    return 0


def add_code(folder) -> None:
    """The source of model and configuration into the folder, and into its `config.json` where it lies."""
    from .. import auto
    from ..model.configuration_reformer import ReformerConfig
    from .loading import load_config

    config = load_config(str(folder))
    classes = {model.__name__: (model, kind.__name__) for kind, model in auto.MODELS.items()}
    name = (config.architectures or ["none"])[0]
    if name not in classes:
        raise ValueError(f"--with-code is given, but the model is a {name}; allowed are {', '.join(classes)}")
    model_class, kind = classes[name]
    ReformerConfig.register_for_auto_class()
    model_class.register_for_auto_class(kind)
    try:
        model_class.from_pretrained(folder).save_pretrained(folder)
    finally:
        ReformerConfig._auto_class = model_class._auto_class = None
