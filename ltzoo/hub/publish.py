"""Publish: a model folder as one commit on the Hub, after everything that it says has been checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors
from huggingface_hub.utils.sha import git_hash
from safetensors.torch import load_file

from ltzoo.errors import LtzooError, one_line
from ltzoo.hub.card import METRICS, PLACE
from ltzoo.hub.release import over_seeds
from ltzoo.hub.vectors import VerificationError, check_vectors, make_vectors
from ltzoo.models import create_model
from ltzoo.models.download import PICKLES, file_hash, probe
from ltzoo.models.entries import NoWeightsError, get_results

__all__ = ['Publication', 'PublishError', 'check_folder', 'publish']

_NEEDED = ('model.safetensors', 'config.json', 'README.md', 'results.json', 'vectors.safetensors', 'log.jsonl')
_OPTIONAL = ('accuracy.png', 'curves.png', '.eval_results/*.yaml')
# What git takes for no branch (git check-ref-format): the Hub refuses it, but only once the repository is made.
_NO_BRANCH = re.compile(r'[\s\x00-\x1f\x7f~^:?*\[\\]|\.\.|//|/\.|@\{|^[-/.]|[/.]$|\.lock(/|$)|^@?$')
# Of other libraries, too: their repository is another model's.
_FOREIGN = ('.gguf', '.h5', '.keras', '.msgpack', '.onnx', '.onnx_data', '.ot', '.pt2', '.tflite')
_WEIGHTS = ('.safetensors', '.safetensors.index.json', *PICKLES, *_FOREIGN)


class PublishError(LtzooError, RuntimeError):
    """A folder that must not be published, or a repository that does not take it."""


@dataclass(frozen=True)
class Publication:
    """What became of a folder.

    Attributes:
        name: what loads it from there, `hf-hub:ORG/NAME` with `@BRANCH` where that is not the main one.
        files: what is in the commit.
        removed: what the commit takes out: plots, scores and weights of what was there before.
        url: of the commit; None if nothing had to be changed, or nothing was to be.
    """

    name: str
    files: tuple[str, ...]
    removed: tuple[str, ...]
    url: str | None


def publish(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    force: bool = False,
    private: bool = False,
    revision: str = 'main',
    dry_run: bool = False,
) -> Publication:
    """Put a model folder on the Hub, all of it in one commit, and make its repository if there is none.

    The token is that of `hf auth login` or HF_TOKEN.

    Args:
        folder: as `ltzoo.hub.release` writes it.
        repo: `ORG/NAME`.
        force: replace a different model, and remove what was there of it.
        private: make a private repository; one that is there must be private already.
        revision: the branch.
        dry_run: check everything, also what is on the Hub, and change nothing.

    Raises:
        PublishError: if a name is none of a repository or branch, the folder lacks something, does not load back equal
            or has no scores, or the repository holds a different model, is public where `private` is asked for, may not
            be written, or was changed meanwhile.
        DownloadError: if the Hub cannot be reached.
        ModelFilesError: if the folder's model is damaged or of an architecture that is not known.
    """
    if repo.count('/') != 1 or not all(repo.split('/')):
        raise PublishError(f'{repo!r} names no repository: write ORG/NAME')
    if _NO_BRANCH.search(revision):
        raise PublishError(f'{revision!r} is no name of a branch: write one such as candidate or v2/large')
    content = check_folder(Path(folder))
    results = json.loads(content['results.json'])
    name = f'hf-hub:{repo}' if revision == 'main' else f'hf-hub:{repo}@{revision}'
    place = results['name'] if name == f'hf-hub:{results.get("hub_id")}' and _is_in_package(results) else name
    content['README.md'] = content['README.md'].replace(PLACE.encode(), place.encode())
    probe()
    api = HfApi()
    try:
        api.whoami()
        info = _look(api, repo, revision)
        changed, removed = _plan(repo, info, content, force, private)
        if dry_run:
            return Publication(name, changed, removed, None)
        if info is None:
            # An organisation may have private as its default; without being asked to, it is not made public.
            api.create_repo(repo, private=private or None, exist_ok=True)
        if revision != 'main':
            api.create_branch(repo, branch=revision, exist_ok=True)
        # What the commit goes on top of: perhaps somebody else's, put there since.
        info = api.model_info(repo, revision=revision, files_metadata=True)
        changed, removed = _plan(repo, info, content, force, private)
        if not changed and not removed:
            return Publication(name, changed, removed, None)
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, content[name]) for name in changed),
                *(CommitOperationDelete(name) for name in removed),
            ],
            commit_message=f'{results["name"]}: weights, configuration, card, results',
            revision=revision,
            parent_commit=info.sha,
        )
    except LtzooError:
        raise
    except Exception as error:  # Whatever HTTP library the client is built on.
        raise PublishError(f'{repo} could not be written: {_explain(error)}') from error
    return Publication(name, changed, removed, commit.commit_url)


def check_folder(folder: Path) -> dict[str, bytes]:
    """Return the files of a model folder that are to be published, by their names.

    Raises:
        PublishError: if one is missing, the weights are not those of its results, it has no scores, its configuration
            is of another run, it does not give the logits stored with it, or it holds a pickle.
    """
    if not folder.is_dir():
        raise PublishError(f'there is no folder {folder}: tools/export.py makes one of finished runs')
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise PublishError(f'{folder} lacks {missing[0]}: tools/export.py makes a whole folder of finished runs')
    pickles = sorted(path.name for path in folder.rglob('*') if path.suffix in PICKLES)
    if pickles:
        raise PublishError(f'{folder} holds {pickles[0]}, a pickle: only safetensors are published')
    try:
        results = json.loads((folder / 'results.json').read_text(encoding='utf-8'))
        scores, stated, runs = results['scores'], results['sha256'], results['runs']
        whole = bool(runs and results['name']) and scores['top1'] is not None and set(METRICS) <= set(scores)
    except (ValueError, KeyError, TypeError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise PublishError(f'{folder / "results.json"} holds no scores: {reason}') from error
    if not whole:
        raise PublishError(f'{folder / "results.json"} holds no scores')
    digest = file_hash(folder / 'model.safetensors')
    if digest != stated:
        raise PublishError(f'the weights in {folder} have SHA-256 {digest}, its results are of {stated}')
    _check_configuration(folder, results)
    try:
        model = create_model(f'local-dir:{folder}', pretrained=True).eval()
        check_vectors(model, folder / 'vectors.safetensors', str(folder))
        # The stored images are normalised already: logits do not tell that users' images would be otherwise.
        stored, made = load_file(folder / 'vectors.safetensors')['images'], make_vectors(model)['images']
        if stored.shape != made.shape or not torch.allclose(stored, made):
            raise PublishError(f'{folder / "config.json"} has another input_size, mean or std than the stored images')
    except VerificationError as error:
        raise PublishError(f'{folder} does not load back equal: {error}') from error
    names = [*_NEEDED, *(str(path.relative_to(folder)) for pattern in _OPTIONAL for path in folder.glob(pattern))]
    return {name: (folder / name).read_bytes() for name in names}


def _is_in_package(results: Mapping[str, Any]) -> bool:
    """Return whether the package has these very weights under their name, so that whoever has it gets them by that."""
    try:
        return bool(get_results(results['name'])['sha256'] == results['sha256'])
    except NoWeightsError:
        return False


def _without_last_bits(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return scores with deviations rounded: Python 3.10 rounds their last bit otherwise than later ones."""
    return {
        key: score and {**score, 'std': None if score['std'] is None else round(score['std'], 9)}
        for key, score in scores.items()
    }


def _check_configuration(folder: Path, results: dict[str, Any]) -> None:
    """Refuse results that contradict themselves, or the configuration beside them."""
    file = folder / 'config.json'
    try:
        config = json.loads(file.read_text(encoding='utf-8'))
        lt, run = config['lt'], results['runs'][0]
        summed_up = _without_last_bits(results['scores']) == _without_last_bits(over_seeds(results['runs']))
        of_the_run = (lt['data'], lt['seed'], lt['split'], *(lt['scores'][key] for key in METRICS)) == (
            results['data'], results['weights_seed'], run['split'], *(run[key] for key in METRICS)
        )  # fmt: skip
        named = (
            list(config['label_names']) == list(lt['class_names']) and len(lt['class_names']) == config['num_classes']
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise PublishError(f'{file} does not go with results.json: {type(error).__name__}: {error}') from error
    if not summed_up:
        raise PublishError(f'{folder / "results.json"} has scores that are not those of its runs')
    if not of_the_run:
        raise PublishError(f'{file} is of another run than results.json says of the weights')
    if not named:
        raise PublishError(f'{file} has label_names that are not its class_names, one for each of the classes')


def _look(api: Any, repo: str, revision: str) -> Any:
    """Return what is at a branch, or would be if it were made now; None if there is no repository."""
    try:
        return api.model_info(repo, revision=revision, files_metadata=True)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        return None
    except errors.RevisionNotFoundError:
        return api.model_info(repo, files_metadata=True)


def _plan(
    repo: str, info: Any, content: dict[str, bytes], force: bool, private: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which files are to be written, and which removed, so that a repository holds the content and no other.

    Raises:
        PublishError: if it must not be written.
    """
    if info is None:
        return tuple(content), ()
    if private and not info.private:
        raise PublishError(f'{repo} exists and is public: make it private on its page, or give another name')
    there = {file.rfilename: file for file in info.siblings or ()}
    weights = there.get('model.safetensors')
    # A repository with other weights is another model too.
    another = not _same(weights, content['model.safetensors']) if weights else any(n.endswith(_WEIGHTS) for n in there)
    if another and not force:
        raise PublishError(f'{repo} holds another model already: give another name, or replace it with --force')
    changed = tuple(name for name, data in content.items() if not _same(there.get(name), data))
    removed = tuple(
        name
        for name in there
        if name not in content
        and (any(fnmatchcase(name, one) for one in _OPTIONAL) or (another and name.endswith(_WEIGHTS)))
    )
    return changed, removed


def _same(file: Any, data: bytes) -> bool:
    if file is None:
        return False
    if file.lfs is not None:
        return bool(file.lfs.sha256 == hashlib.sha256(data).hexdigest())
    return bool(file.blob_id == git_hash(data))


def _explain(error: Exception) -> str:
    if isinstance(error, errors.LocalTokenNotFoundError):
        return 'nobody is logged in; log in with a token that may write there (hf auth login, or HF_TOKEN)'
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if status in (401, 403):
        return f'the Hub answers {status}; log in with a token that may write there (hf auth login, or HF_TOKEN)'
    if status == 412:
        return 'it was changed meanwhile; look at what is there and publish again'
    return one_line(error)
