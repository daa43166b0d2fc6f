"""Models from the Hub: every file verified, every failure said at once and in one sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltzoo.errors import LtzooError

__all__ = ['DownloadError', 'fetch', 'file_hash', 'probe']

# Seconds until a server counts as unreachable; the client itself would try again for 40.
_CONNECT, _ANSWER = 0.9, 10.0
_PICKLES = ('.bin', '.pth', '.pt', '.ckpt', '.tar', '.pkl')


class DownloadError(LtzooError, OSError):
    """A model that cannot be had from the Hub."""


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    files: Sequence[str] = ('config.json', 'model.safetensors'),
    sha256: str | None = None,
) -> Path:
    """Return a folder with files of a repository, from the client's cache where they are in it.

    Every file is verified, also one from the cache: against `sha256`, else by the hash that the Hub names it by
    (SHA-256 of large files, Git's SHA-1 of small ones), which the client itself does not do. All files are of one
    commit. Without a way to the Hub, those that were fetched last are taken.

    Args:
        repo: `ORG/NAME`.
        revision: branch, tag or commit; by default the main branch.
        files: their names in the repository.
        sha256: hexadecimal, of model.safetensors, where it is known.

    Raises:
        DownloadError: if the repository, revision or a file does not exist or may not be read, the Hub cannot be
            reached, or what comes is not what the hash says; nothing of it is kept.
    """
    from huggingface_hub import try_to_load_from_cache

    where = f'hf-hub:{repo}' + (f'@{revision}' if revision else '')
    branch = revision or 'main'
    named, commit, unreachable = {}, branch, None
    for file in files:
        metadata = _ask(repo, file, commit, where) if unreachable is None else None
        if isinstance(metadata, Exception):
            unreachable, metadata = metadata, None
        if metadata is not None:
            commit, named[file] = metadata.commit_hash or commit, metadata.etag
    folder: Path | None = None
    for file in files:
        found = try_to_load_from_cache(repo, file, revision=commit)
        if isinstance(found, str) and not _right(Path(found), file, named, sha256):
            # Damaged since it came; it is fetched anew.
            _forget(Path(found))
            found = None
        if not isinstance(found, str):
            if unreachable is not None:
                raise DownloadError(
                    f'{where} cannot be loaded: {_endpoint()} cannot be reached ({_reason(unreachable)}), '
                    f'and {file} is not in the cache'
                ) from unreachable
            # By the branch's name once, so that the client knows offline too where it was.
            found = _download(repo, file, branch if folder is None else commit, where)
            path = Path(found)
            if not _right(path, file, named, sha256):
                digest = file_hash(path)
                _forget(path)
                expected = _expected(path, file, named, sha256)
                raise DownloadError(
                    f'{file} of {where} came damaged or is not what was published: its SHA-256 is {digest}, '
                    f'{expected} was expected; nothing of it was kept'
                )
        if folder is None and unreachable is None and try_to_load_from_cache(repo, file, revision=branch) != found:
            # The branch has moved to a commit that was in the cache already.
            _download(repo, file, branch, where)
        folder = Path(found).parents[len(Path(file).parents) - 1]
    assert folder is not None
    return folder


def probe(endpoint: str | None = None) -> None:
    """Return if the Hub answers.

    Raises:
        DownloadError: if it does not, within about a second.
    """
    from huggingface_hub import errors, get_session

    url = endpoint or _endpoint()
    try:
        if _offline():
            raise errors.OfflineModeIsEnabled
        get_session().head(url, timeout=_timeout())
    except Exception as error:  # Whatever HTTP library the client is built on.
        raise DownloadError(f'{url} cannot be reached: {_reason(error)}') from error


def file_hash(path: Path, kind: str = 'sha256') -> str:
    """Return the hexadecimal hash of a file: its SHA-256, or as `git` the SHA-1 by which Git names its content."""
    digest = hashlib.sha1(f'blob {path.stat().st_size}\0'.encode()) if kind == 'git' else hashlib.sha256()
    with open(path, 'rb') as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _ask(repo: str, file: str, revision: str, where: str) -> Any:
    """Return what the Hub knows of a file, or the error by which it cannot be reached."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        if '/' not in repo:
            raise errors.HFValidationError(repo)
        return get_hf_file_metadata(hf_hub_url(repo, file, revision=revision), timeout=_timeout())
    except errors.HFValidationError as error:
        raise DownloadError(
            f'{where} names no repository: write hf-hub:ORG/NAME, or hf-hub:ORG/NAME@REVISION'
        ) from error
    except errors.GatedRepoError as error:
        raise DownloadError(
            f'{where} is gated: ask for access on its page, then log in (hf auth login) or set HF_TOKEN'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f'{where} does not exist, or is private: check the name, or log in (hf auth login)'
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f'{where}: the repository has no revision {revision!r}') from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(_missing(repo, file, revision, where)) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status < 500:
            raise DownloadError(f'{where} cannot be read: {_endpoint()} answers {status}') from error
        return error
    except Exception as error:  # Whatever HTTP library the client is built on: refused, timed out, offline.
        return error


def _missing(repo: str, file: str, revision: str, where: str) -> str:
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repo, revision=revision)
    except Exception:  # The reason given is then the shorter one.
        names = []
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles and file.endswith('.safetensors'):
        return (
            f'{where} has no safetensors, only {pickles[0]}, a pickle, which can run code when it is read: if you '
            f'trust it, download it and run tools/convert.py {pickles[0]} --from timm --to DIR'
        )
    return f'{where} has no file {file}' + (f'; it has {", ".join(sorted(names)[:5])}' if names else '')


def _download(repo: str, file: str, commit: str, where: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(repo, file, revision=commit)
    except Exception as error:  # Whatever HTTP library the client is built on.
        raise DownloadError(f'{file} of {where} could not be downloaded: {_reason(error)}') from error


def _expected(path: Path, file: str, named: dict[str, str], sha256: str | None) -> str:
    # In the cache a file is a link to one that bears its hash as name.
    etag = named.get(file) or path.resolve().name
    return sha256 if sha256 and file == 'model.safetensors' else etag


def _right(path: Path, file: str, named: dict[str, str], sha256: str | None) -> bool:
    expected = _expected(path, file, named, sha256)
    if len(expected) == 64:
        return file_hash(path) == expected
    # A server that gives another kind of name leaves nothing to compare with.
    return len(expected) != 40 or file_hash(path, 'git') == expected


def _forget(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _timeout() -> Any:
    try:
        import httpx2
    except ImportError:
        # Clients before 2.0 are built on other libraries; these take one number.
        return _ANSWER
    return httpx2.Timeout(_ANSWER, connect=_CONNECT)


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set'
    return ' '.join(str(error).split()) or type(error).__name__


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
