"""What every request to the hub has in common: a limit to its waiting, and one line for each way in which it can fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeGuard

from graftkit.errors import GraftkitError, InputRejected, NotThere, StorageFault, printable


@contextlib.contextmanager
def limited_waits(seconds: float | None = None) -> Iterator[None]:
    """Give a timeout to every request that huggingface_hub sends without one, by default its own HF_HUB_DOWNLOAD_TIMEOUT."""
    from huggingface_hub import constants, get_session

    limit = constants.HF_HUB_DOWNLOAD_TIMEOUT if seconds is None else seconds

    def limited(request: Any) -> None:
        given = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            kind: limit if given.get(kind) is None else given[kind] for kind in ("connect", "read", "write", "pool")
        }

    session = get_session()
    before = session.event_hooks
    session.event_hooks = {**before, "request": [*before.get("request", ()), limited]}
    try:
        yield
    finally:
        session.event_hooks = before


@contextlib.contextmanager
def hub_faults(
    repo_id: str, revision: str | None = None, *, near: str = "", doing: str = "the download"
) -> Iterator[None]:
    """Say in one line what the hub answered; ``near`` follows where there is no such repository, ``doing`` names what failed.

    Raises:
        InputRejected: there is no such repository or revision, or access to it is refused.
        StorageFault: the hub cannot be reached, or fails.
    """
    try:
        yield
    except GraftkitError:
        raise
    except Exception as error:
        raise _fault(error, repo_id, revision, near, doing) from error


def _fault(error: Exception, repo_id: str, revision: str | None, near: str, doing: str) -> GraftkitError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    refusals = {  # the first that fits: a gated repository is one that is not found, too
        GatedRepoError: "is gated; accept its terms on the hub, then run `hf auth login` or set HF_TOKEN",
        RevisionNotFoundError: f"has no revision '{printable(revision)}' on the hub",
        RepositoryNotFoundError: (
            f"is neither a folder nor a hub repository, or it is private and HF_TOKEN does not open it{near}"
        ),
    }
    for kind, refusal in refusals.items():
        if isinstance(error, kind):
            return (NotThere if kind is RepositoryNotFoundError else InputRejected)(f"{repo_id}: {refusal}")
    for answer in (error, error.__cause__):  # what the library itself raises comes from that
        if isinstance(answer, HfHubHTTPError):
            return _refused(answer, repo_id, doing)
    if isinstance(error, LocalEntryNotFoundError):
        return _not_cached(error, repo_id, revision, near)
    for answer in (error, error.__cause__):
        if is_of_the_client(answer):
            return StorageFault(f"{repo_id}: the hub cannot be reached: {first_line(answer)}")
    return StorageFault(f"{repo_id}: {doing} failed: {first_line(error)}")


def _refused(answer: Any, repo_id: str, doing: str) -> GraftkitError:
    status = answer.response.status_code
    if status in (401, 403):
        return InputRejected(
            f"{repo_id}: the hub refuses access ({status}); run `hf auth login`, or set HF_TOKEN to a token that may"
        )
    return StorageFault(f"{repo_id}: the hub refused {doing}: {first_line(answer)}")


def _not_cached(error: Exception, repo_id: str, revision: str | None, near: str) -> GraftkitError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        at = f" at revision '{printable(revision)}'" if revision else ""
        return NotThere(
            f"{repo_id}: is not a local folder and{at} not cached; unset HF_HUB_OFFLINE to download it{near}"
        )
    return StorageFault(f"{repo_id}: is not wholly cached, and the hub cannot be reached: {first_line(error)}")


def is_of_the_client(error: BaseException | None) -> TypeGuard[Exception]:
    """Whether the HTTP client underneath huggingface_hub, whichever it is, raised an error of its own: no answer came."""
    from huggingface_hub import errors

    client_error = errors.HTTPError  # type: ignore[attr-defined]  # the base of its own error of an answer
    return isinstance(error, client_error) and not isinstance(error, errors.HfHubHTTPError)


def first_line(error: Exception) -> str:
    """The first line of what an error says, fit for a terminal."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])
