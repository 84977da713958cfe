"""Uploading an output to the hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from graftkit.checkpoint.hub.requests import hub_faults, limited_waits
from graftkit.errors import GraftkitError, RecipeError, StorageFault, printable

#: Seconds that an answer is waited for: the hub makes a commit of many files while its request waits.
LONGEST = 300

#: What the commit on the hub is called.
MESSAGE = "Grafted with graftkit"


def check_upload(repo_id: str) -> None:
    """See that an upload to ``repo_id`` can be tried, before anything is done for it; the hub is not asked.

    Raises:
        RecipeError: it is no hub id, there is no token, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # said in words alone

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RecipeError(f"--push-to-hub: '{printable(repo_id)}' is not a hub id, such as org/name") from error
    if constants.HF_HUB_OFFLINE:
        raise RecipeError("--push-to-hub: HF_HUB_OFFLINE is set; unset it to upload")
    if get_token() is None:
        raise RecipeError(
            "--push-to-hub: there is no token; run `hf auth login`, or set HF_TOKEN to one that may write"
        )


def check_base(name: str, revision: str | None) -> None:
    """See that the model card can name its base as the hub wants it named.

    Raises:
        RecipeError: the base is a local folder; the hub refuses a card whose ``base_model`` is a path.
    """
    if revision is None:
        raise RecipeError(
            f"--push-to-hub: the base is the folder {printable(name)}, and the hub refuses a model card whose base_model is a"
            " path; give the base by its hub id"
        )


def upload(folder: Path, repo_id: str, *, public: bool) -> str:
    """Upload a folder, its model card included, and return the commit's address; a repository that is new is private or ``public``.

    Raises:
        StorageFault: nothing, or not all, was uploaded; the message says why, and what tries again.
    """
    from huggingface_hub import HfApi

    try:
        with hub_faults(repo_id, doing="the upload"), limited_waits(LONGEST):
            api = HfApi()
            made = api.create_repo(repo_id, private=not public, exist_ok=True)
            return str(api.upload_folder(folder_path=folder, repo_id=made.repo_id, commit_message=MESSAGE).commit_url)
    except GraftkitError as error:
        again = ["hf", "upload", repo_id, str(folder), ".", *([] if public else ["--private"])]
        raise StorageFault(f"not uploaded: {error}; to try again: {shlex.join(again)}") from error
