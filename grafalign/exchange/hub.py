"""To the Hugging Face Hub: a finished export, uploaded as it is."""

from __future__ import annotations

import re
from pathlib import Path

from grafalign import __version__
from grafalign.errors import InputError, RemoteError


def check_hub(repo: str) -> str:
    """Check before any work is done that an upload can begin; return the token.

    Args:
        repo: `NAMESPACE/NAME`.

    Raises:
        GrafalignError: the name is none, or there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f'--push-to-hub {repo}: {_short(error)} Give NAMESPACE/NAME.') from None
    if not re.fullmatch(r'[^/]+/[^/]+', repo):
        raise InputError(f'--push-to-hub {repo} is no name of a repository; give NAMESPACE/NAME.')
    token = get_token()
    if token is None:
        raise InputError(
            'There is no token for the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN to a token '
            'that may write.'
        )
    return token


def push(folder: Path, repo: str, token: str, private: bool = False) -> str:
    """Make the repository if it is not there, and upload a folder; return its address.

    Args:
        folder: a finished export.
        repo: `NAMESPACE/NAME`.
        token: as `check_hub` gives it.
        private: make a new repository private; one that is there stays what it is.

    Raises:
        GrafalignError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name='grafalign', library_version=__version__)
    try:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f'Export by grafalign {__version__}')
    except Exception as error:  # the client, its transport and its transfer library raise types of their own
        raise RemoteError(
            f'{folder} is written, but it cannot be uploaded to {repo} ({_short(error)}); check the network and that '
            'your token may write there, and run the same command again.'
        ) from None
    return str(url)


def _short(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__
