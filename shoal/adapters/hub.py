"""Adapters to and from a model hub, by id; `HF_ENDPOINT` and `HF_TOKEN` name another hub and the caller.

Only the files of an adapter directory are sent or fetched. Knows nothing of the registry.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shoal.adapters.files import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from shoal.errors import ShoalError, UsageError, reason

T = TypeVar("T")


def push(directory: str | os.PathLike[str], hub_id: str, *, private: bool = True, message: str = "") -> str:
    """Send an adapter directory to a repository of the hub, made if missing.

    Args:
        directory: of the adapter.
        hub_id: `owner/name`.
        private: whether a new repository is seen by its owner alone.
        message: of the commit.

    Returns:
        Address of the commit.

    Raises:
        UsageError: no hub id.
        ShoalError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    _check_id(hub_id)

    def send() -> str:
        api.create_repo(hub_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=hub_id,
            folder_path=Path(directory),
            allow_patterns=list(ADAPTER_FILES),
            commit_message=message or "Add a LoRA adapter",
        )
        return str(commit.commit_url)

    return _asking(hub_id, "push to", send)


def pull(
    hub_id: str, directory: str | os.PathLike[str], *, max_bytes: int, revision: str | None = None
) -> str:
    """Fetch the files of an adapter from a repository of the hub; sizes are checked before they are fetched.

    Args:
        hub_id: `owner/name`.
        directory: where the files go.
        max_bytes: largest sum of the files.
        revision: branch, tag or commit; by default the newest.

    Returns:
        The commit that the files are of.

    Raises:
        UsageError: no hub id, no adapter there, or one that is too large.
        ShoalError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    _check_id(hub_id)
    info = _asking(hub_id, "pull", lambda: api.model_info(hub_id, revision=revision, files_metadata=True))
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or () if s.rfilename in ADAPTER_FILES}
    if missing := {CONFIG_FILE, WEIGHTS_FILE} - sizes.keys():
        raise UsageError(f"{hub_id} has no {min(missing)}, so it is no PEFT adapter; check the id")
    if (size := sum(sizes.values())) > max_bytes:
        raise UsageError(f"{hub_id} has {size} bytes, the limit is {max_bytes}; choose a smaller adapter")
    commit = str(info.sha)

    def fetch() -> None:
        for name in sizes:
            api.hf_hub_download(hub_id, name, revision=commit, local_dir=Path(directory))

    _asking(hub_id, "pull", fetch)
    return commit


def _check_id(hub_id: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise UsageError(f"{hub_id[:80]!r} is no hub id ({reason(error, 100)}); write owner/name") from None


def _asking(hub_id: str, verb: str, act: Callable[[], T]) -> T:
    try:
        return act()
    except Exception as error:  # the hub's own errors, those of HTTP and of sockets
        raise ShoalError(
            f"cannot {verb} {hub_id}: {reason(error)}; check the id, the network and HF_TOKEN"
        ) from error
