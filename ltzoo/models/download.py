"""Models from the Hub: every file verified, every failure said at once and in one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    errors,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ltzoo.errors import LtzooError, one_line
from ltzoo.files import write_atomically

__all__ = ['PICKLES', 'DownloadError', 'fetch', 'fetch_named', 'file_hash', 'probe']

# Files that run code when they are read, or may hold such.
PICKLES = ('.bin', '.pth', '.pt', '.ckpt', '.tar', '.pkl', '.pickle')

# Seconds until a server that takes no call counts as unreachable, time to call it twice; the client itself would try
# again for 40.
_CONNECT = 1.5
# Answers to be taken as none: not now, too many calls.
_BUSY = (408, 429)
_WEIGHTS = 'model.safetensors'
# SHA-256 or Git's SHA-1; a server may name files otherwise too.
_HASH = re.compile('[0-9a-f]{64}|[0-9a-f]{40}')


class DownloadError(LtzooError, OSError):
    """A model that cannot be had from the Hub."""


def fetch_named(name: str, **options: Any) -> Path:
    """Return what `fetch` does for a name, `hf-hub:ORG/NAME[@REVISION]`; options and errors are those of `fetch`."""
    repo, _, revision = name.removeprefix('hf-hub:').partition('@')
    return fetch(repo, revision=revision or None, **options)


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    files: Sequence[str] = ('config.json', 'model.safetensors'),
    sha256: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Return a folder with files of a repository, from the client's cache where they are in it.

    Every file is verified, also one from the cache: against `sha256`, and by the hash that the Hub names it by
    (SHA-256 of large files, Git's SHA-1 of small ones), which the client itself does not do. All files are of one
    commit. Without a way to the Hub, those that were last fetched whole are taken.

    Args:
        repo: `ORG/NAME`.
        revision: branch, tag or commit; by default the main branch.
        files: their names in the repository.
        sha256: hexadecimal, of model.safetensors, where it is known.
        cache_dir: the cache, by default the client's own.

    Raises:
        DownloadError: if the repository, revision or a file does not exist or may not be read, the Hub cannot be
            reached, or what comes is not what the hash says; nothing of it is kept.
    """
    where = f'hf-hub:{repo}' + (f'@{revision}' if revision else '')
    branch = revision or 'main'
    named: dict[str, str] = {}
    commit, unreachable = branch, None
    for file in files:
        metadata = _ask(repo, file, commit, where)
        if isinstance(metadata, Exception):
            commit, named, unreachable = branch, {}, metadata
            break
        commit, named[file] = metadata.commit_hash or commit, metadata.etag
    published = named.get(_WEIGHTS) or ''
    if sha256 and len(published) == 64 and published != sha256:
        raise DownloadError(
            f'{_WEIGHTS} of {where} is not the expected one: its SHA-256 is {published}, {sha256} was expected; '
            'it was not downloaded'
        )
    for file in files:
        known = sha256 if file == _WEIGHTS else None
        path = _obtain(repo, file, commit, named.get(file), known, where, unreachable, cache_dir)
    folder = path.parents[len(Path(file).parents) - 1]
    if unreachable is None and commit != branch:
        # Only now, so that offline the branch is a commit that is here whole. A cache for reading only stays as it is.
        with suppress(OSError):
            _remember(folder, branch, commit)
    return folder


def probe() -> None:
    """Return if the Hub answers.

    Raises:
        DownloadError: if it does not, within about a second.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            raise errors.OfflineModeIsEnabled
        get_session().head(constants.ENDPOINT, timeout=_timeout())
    except Exception as error:  # Whatever HTTP library the client is built on.
        raise DownloadError(f'{constants.ENDPOINT} cannot be reached: {_reason(error)}') from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with open(path, 'rb') as content:
        return sha_fileobj(content).hex()


def _ask(repo: str, file: str, revision: str, where: str) -> Any:
    """Return what the Hub knows of a file, or the error by which it cannot be reached."""
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
        if status == 401:
            raise DownloadError(
                f'{where} cannot be read: {constants.ENDPOINT} does not know the token; log in again (hf auth login), '
                'or set another HF_TOKEN, or none'
            ) from error
        if status < 500 and status not in _BUSY:
            raise DownloadError(f'{where} cannot be read: {constants.ENDPOINT} answers {status}') from error
        return error
    except Exception as error:  # Whatever HTTP library the client is built on: refused, timed out, offline.
        return error


def _missing(repo: str, file: str, revision: str, where: str) -> str:
    try:
        names = HfApi().list_repo_files(repo, revision=revision)
    except Exception:  # The reason given is then the shorter one.
        names = []
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles and not any(name.endswith('.safetensors') for name in names):
        return (
            f'{where} has no safetensors, only {pickles[0]}, a pickle, which can run code when it is read: if you '
            f'trust it, download it and run tools/convert.py {pickles[0]} --from timm --arch NAME --to DIR'
        )
    return f'{where} has no file {file}' + (f'; it has {", ".join(sorted(names)[:5])}' if names else '')


def _obtain(
    repo: str,
    file: str,
    commit: str,
    etag: str | None,
    sha256: str | None,
    where: str,
    unreachable: Exception | None,
    cache_dir: str | Path | None,
) -> Path:
    """Return a file, verified: from the cache, else from the Hub where it can be reached."""
    found = try_to_load_from_cache(repo, file, cache_dir=cache_dir, revision=commit)
    state = 'is not in the cache'
    if isinstance(found, str):
        path = Path(found)
        name = etag or _blob(path).name
        if _mismatch(path, name):
            _forget(path)
            if path.exists():
                raise DownloadError(
                    f'{path} is damaged, in a cache that may not be written: remove it, or give another cache_dir'
                )
            state = 'was damaged in the cache'
        elif sha256 in (None, name) or (other := _mismatch(path, sha256)) is None:
            return path
        elif unreachable is None:
            _forget(path)
        else:
            state = f'is another one in the cache: {other}'
    if unreachable is not None:
        raise DownloadError(
            f'{where} cannot be loaded: {constants.ENDPOINT} cannot be reached ({_reason(unreachable)}), and '
            f'{file} {state}'
        ) from unreachable
    path = _download(repo, file, commit, where, cache_dir)
    mismatch = _mismatch(path, etag) or (None if sha256 == etag else _mismatch(path, sha256))
    if mismatch:
        _forget(path)
        raise DownloadError(
            f'{file} of {where} came damaged or is not what was published: {mismatch}; nothing of it was kept'
        )
    return path


def _download(repo: str, file: str, commit: str, where: str, cache_dir: str | Path | None) -> Path:
    try:
        return Path(hf_hub_download(repo, file, revision=commit, cache_dir=cache_dir))
    except Exception as error:  # Whatever HTTP library the client is built on.
        sizes = re.search(r'of size (\d+) but has size (\d+)', str(error))
        reason = f'only {sizes[2]} of its {sizes[1]} bytes came; try again' if sizes else _reason(error)
        raise DownloadError(f'{file} of {where} could not be downloaded: {reason}') from error


def _mismatch(path: Path, expected: str | None) -> str | None:
    """Return how a file differs from a hash; None if it does not, or there is no hash to compare with."""
    if expected is None or not _HASH.fullmatch(expected):
        return None
    # Git's, of the small files.
    title, found = ('SHA-256', file_hash(path)) if len(expected) == 64 else ('Git hash', git_hash(path.read_bytes()))
    return None if found == expected else f'its {title} is {found}, {expected} was expected'


def _blob(path: Path) -> Path:
    """Return what a file of the cache is a link to: its content, which bears its hash as name."""
    # One step: the content may be a link again, into a store shared by repositories, which names it otherwise.
    return path.parent / os.readlink(path) if path.is_symlink() else path


def _forget(path: Path) -> None:
    for place in (path.resolve(), _blob(path), path):
        # A cache for reading only stays as it is.
        with suppress(OSError):
            place.unlink(missing_ok=True)


def _remember(folder: Path, branch: str, commit: str) -> None:
    """Note in the cache which commit a branch is, as the client would."""
    note = folder.parents[1] / 'refs' / branch
    before = note.read_text() if note.is_file() else None
    if before and (folder.parent / before / _WEIGHTS).exists() and not (folder / _WEIGHTS).exists():
        # Without the weights, the new one is not whole: offline, the former one is.
        return
    if before != commit:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, commit)


def _timeout() -> Any:
    # The class of the client's own library: httpx before 2.0, httpx2 since.
    limits: Any = type(get_session().timeout)
    return limits(constants.HF_HUB_ETAG_TIMEOUT, connect=_CONNECT)


def _reason(error: Exception) -> str:
    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set'
    return one_line(error)
