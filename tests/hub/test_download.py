"""From the Hub: what comes is what was published, and what cannot come is said in one sentence, at once."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, Hub, etag
from torch import nn

import ltzoo
from ltzoo.hub import export_model
from ltzoo.models import NoWeightsError
from ltzoo.models.download import DownloadError, _timeout, fetch, file_hash, probe

Train = Callable[..., nn.Module]
REPO = 'someone/model'
ROOT = Path(__file__).resolve().parents[2]


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', url + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setattr(constants, 'ENDPOINT', url)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    use_endpoint(monkeypatch, server.url)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='session')
def made(train: Train, record: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('downloaded') / 'made'
    export_model(train('resnet20_cifar'), folder, record, input_size=(3, 16, 16), mean=(0.3,) * 3, std=(0.2,) * 3)
    return folder


@pytest.fixture
def files(made: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in made.iterdir()}


def refused(name: str, pretrained: bool = True) -> str:
    start = time.perf_counter()
    with pytest.raises(DownloadError) as caught:
        ltzoo.create_model(name, pretrained=pretrained)
    # The client itself would try for 40 seconds.
    assert time.perf_counter() - start < 15
    message = str(caught.value)
    assert '\n' not in message
    return message


def cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / 'cache').rglob('*') if path.is_file() and 'snapshots' in path.parts]


def test_a_model_comes_whole_once_and_then_from_the_cache(
    hub: Hub, files: dict[str, bytes], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.add(REPO, files)
    model = ltzoo.create_model(f'hf-hub:{REPO}', pretrained=True).eval()
    wanted = ltzoo.create_model(f'local-dir:{made}', pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(model(images), wanted(images))
    assert sorted(name for name, _ in hub.sent) == ['config.json', 'model.safetensors']
    ltzoo.create_model(f'hf-hub:{REPO}', pretrained=True)
    assert len(hub.sent) == 2
    # A new commit is noticed; the old one can still be had by its name.
    first = repository.branches['main']
    repository.commit({'config.json': files['config.json'].replace(b'"pets_lt"', b'"dogs_lt"')})
    assert b'dogs_lt' in (fetch(REPO) / 'config.json').read_bytes()
    assert b'pets_lt' in (fetch(REPO, revision=first) / 'config.json').read_bytes()
    assert ltzoo.create_model(f'hf-hub:{REPO}@{first}').num_classes == 5
    # Without a way to the Hub, and told not to try, the last one is taken.
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    assert b'dogs_lt' in (fetch(REPO) / 'config.json').read_bytes()
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    hub.shutdown()
    hub.server_close()
    huggingface_hub.close_session()
    assert b'dogs_lt' in (fetch(REPO) / 'config.json').read_bytes()
    assert 'cannot be reached' in refused('hf-hub:someone/other')


def test_only_what_is_needed_comes(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(REPO, {**files, 'pytorch_model.bin': b'pickle'})
    ltzoo.create_model(f'hf-hub:{REPO}')
    assert [name for name, _ in hub.sent] == ['config.json']


def test_the_cache_can_be_chosen(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(REPO, files)
    for _ in range(2):
        ltzoo.create_model(f'hf-hub:{REPO}', pretrained=True, cache_dir=tmp_path / 'chosen')
    assert sorted(name for name, _ in hub.sent) == ['config.json', 'model.safetensors']
    assert list((tmp_path / 'chosen').rglob('model.safetensors'))
    assert not cached(tmp_path)


def test_what_is_wrong_is_said_of_the_name(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(REPO, {**files, 'config.json': b'{'})
    with pytest.raises(ltzoo.models.ModelFilesError, match=f'^hf-hub:{REPO}/config.json is not the configuration'):
        ltzoo.create_model(f'hf-hub:{REPO}')


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
def test_flipped_bytes_are_noticed_and_not_kept(hub: Hub, files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    hub.add(REPO, files)
    hub.faults[name] = 'flip'
    message = refused(f'hf-hub:{REPO}')
    title = 'SHA-256' if name == 'model.safetensors' else 'Git hash'
    assert f'{name} of hf-hub:{REPO} came damaged or is not what was published: its {title} is ' in message
    assert f', {etag(name, files[name])} was expected; nothing of it was kept' in message
    assert name not in {path.name for path in cached(tmp_path)}
    hub.faults.clear()
    ltzoo.create_model(f'hf-hub:{REPO}', pretrained=True)
    assert name in {path.name for path in cached(tmp_path)}


def test_weights_that_are_not_those_of_the_entry(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files)
    digest = hashlib.sha256(files['model.safetensors']).hexdigest()
    folder = fetch(REPO, sha256=digest)
    assert file_hash(folder / 'model.safetensors') == digest
    # Published anew under the same name: right by the server's hash, wrong by ours, and not worth a transfer.
    with pytest.raises(DownloadError, match=f'its SHA-256 is {digest}, {"0" * 64} was expected; it was not downloaded'):
        fetch(REPO, sha256='0' * 64)
    assert len(hub.sent) == 2
    # Nor is what the cache has taken for it, nor removed, as it is right for others.
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(DownloadError, match=f'is another one in the cache: its SHA-256 is {digest}, {"0" * 64} was'):
        fetch(REPO, sha256='0' * 64)
    assert fetch(REPO, sha256=digest) == fetch(REPO) == folder


def test_a_hash_that_the_hub_does_not_know(hub: Hub, tmp_path: Path) -> None:
    # A server that names large files by Git's hash: ours is compared with what came.
    import hub_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_server, 'LARGE', '.none')
        hub.add(REPO, {'model.safetensors': b'weights', 'config.json': b'{}'})
        digest = hashlib.sha256(b'weights').hexdigest()
        for _ in range(2):
            with pytest.raises(DownloadError, match=f'its SHA-256 is {digest}, {"0" * 64} was expected; nothing of it'):
                fetch(REPO, files=('model.safetensors',), sha256='0' * 64)
            assert cached(tmp_path) == []
        assert fetch(REPO, sha256=digest).is_dir()


def test_a_file_damaged_in_the_cache_is_fetched_anew(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files)
    weights = fetch(REPO) / 'model.safetensors'
    damaged = bytearray(files['model.safetensors'])
    damaged[-1] ^= 1
    weights.resolve().write_bytes(damaged)
    assert (fetch(REPO) / 'model.safetensors').read_bytes() == files['model.safetensors']
    assert [name for name, _ in hub.sent].count('model.safetensors') == 2
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    weights.resolve().write_bytes(damaged)
    assert 'and model.safetensors was damaged in the cache' in refused(f'hf-hub:{REPO}')
    assert 'model.safetensors' not in {path.name for path in cached(tmp_path)}


def test_a_cache_whose_content_is_shared_by_repositories(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the client keeps what comes through Xet: the blob is a link to a file that bears another hash.
    hub.add(REPO, files)
    weights = fetch(REPO) / 'model.safetensors'
    blob = weights.resolve()
    shared = tmp_path / 'cache' / 'blobs' / 'ab' / ('ab' * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    assert (fetch(REPO) / 'model.safetensors').read_bytes() == files['model.safetensors']
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    shared.write_bytes(bytes(len(files['model.safetensors'])))
    assert (fetch(REPO) / 'model.safetensors').read_bytes() == files['model.safetensors']
    assert not shared.exists()


@pytest.mark.parametrize('fault', ['flip', 'truncate', '404'])
def test_an_update_that_fails_leaves_the_last_one_usable(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    repository = hub.add(REPO, files)
    before = fetch(REPO)
    repository.commit({'config.json': b'{}', 'model.safetensors': files['model.safetensors'][::-1]})
    hub.faults['model.safetensors'] = fault
    with pytest.raises(DownloadError):
        fetch(REPO)
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
        assert fetch(REPO) == before
        ltzoo.create_model(f'hf-hub:{REPO}', pretrained=True)
    hub.faults.clear()
    after = fetch(REPO)
    assert after != before
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    assert fetch(REPO) == after


def test_a_look_at_an_update_leaves_what_is_here_whole_usable(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.add(REPO, files)
    before = fetch(REPO)
    repository.commit({**files, 'README.md': b'new'})
    # As a model is made without its weights.
    assert fetch(REPO, files=('config.json',)) != before
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
        assert fetch(REPO) == before
    after = fetch(REPO)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    assert fetch(REPO) == after != before


@pytest.mark.parametrize('status', ['429', '503'])
def test_a_busy_hub_is_one_that_does_not_answer(hub: Hub, files: dict[str, bytes], status: str) -> None:
    hub.add(REPO, files)
    hub.add('someone/other', files)
    folder = fetch(REPO)
    hub.faults['config.json'] = status
    assert fetch(REPO) == folder
    assert f'cannot be reached ({status}' in refused('hf-hub:someone/other').replace("Server error '", '')
    # It stops answering between two files of a new commit: both are of the last one.
    hub.faults = {'model.safetensors': status}
    hub.repositories[REPO].commit({'config.json': b'{}'})
    assert fetch(REPO) == folder
    hub.faults['config.json'] = '418'
    assert f'hf-hub:{REPO} cannot be read: {hub.url} answers 418' in refused(f'hf-hub:{REPO}')
    hub.faults['config.json'] = '401'
    assert 'does not know the token' in refused(f'hf-hub:{REPO}')


def test_as_a_user_has_it(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """With nothing patched: processes of their own, the environment's variables, real time."""
    repository = hub.add(REPO, files)
    script = (
        'import sys, time\n'
        'from ltzoo.models.download import DownloadError, fetch\n'
        'import huggingface_hub; huggingface_hub.get_session()\n'
        'for repo in sys.argv[1:]:\n'
        '    start = time.perf_counter()\n'
        '    try: said = fetch(repo).name\n'
        '    except DownloadError as error: said = str(error)\n'
        '    assert time.perf_counter() - start < 15, (repo, time.perf_counter() - start)\n'
        '    print(said)\n'
    )

    def said(endpoint: str, *repos: str, **environment: str) -> list[str]:
        environment = {**os.environ, 'HF_ENDPOINT': endpoint, 'HF_HOME': str(tmp_path / 'home'), **environment}
        environment.pop('HF_HUB_CACHE', None)
        command = [sys.executable, '-c', script, *repos]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    hub.add('someone/cut', files)
    hub.faults['someone/cut/model.safetensors'] = 'truncate'
    head, size = repository.branches['main'], len(files['model.safetensors'])
    assert said(hub.url, REPO, REPO, 'someone/none', 'someone/cut') == [
        *(head, head),
        'hf-hub:someone/none does not exist, or is private: check the name, or log in (hf auth login)',
        'model.safetensors of hf-hub:someone/cut could not be downloaded: '
        f'only {size // 2} of its {size} bytes came; try again',
    ]
    assert [name for name, _ in hub.sent].count('config.json') == 2
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        dead = f'http://127.0.0.1:{taken.getsockname()[1]}'
        there, missing = said(dead, REPO, 'someone/other')
        assert there == head
        assert 'cannot be reached' in missing
    there, missing = said(hub.url, REPO, 'someone/other', HF_HUB_OFFLINE='1')
    assert there == head
    assert '(HF_HUB_OFFLINE is set), and config.json is not in the cache' in missing


def test_a_cut_connection_goes_on_where_it_was_cut(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What has come is kept in chunks of this size, by default larger than the file.
    monkeypatch.setattr(huggingface_hub.constants, 'DOWNLOAD_CHUNK_SIZE', 4096)
    hub.add(REPO, files)
    hub.faults['model.safetensors'] = 'cut'
    folder = fetch(REPO)
    assert (folder / 'model.safetensors').read_bytes() == files['model.safetensors']
    starts = [start for name, start in hub.sent if name == 'model.safetensors']
    assert len(starts) == 2
    assert starts[1] == len(files['model.safetensors']) // 2 // 4096 * 4096


def test_a_short_body_is_refused(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(REPO, files)
    hub.faults['model.safetensors'] = 'truncate'
    assert f'model.safetensors of hf-hub:{REPO} could not be downloaded: ' in refused(f'hf-hub:{REPO}')
    assert [path.name for path in cached(tmp_path)] == ['config.json']
    assert not list((tmp_path / 'cache').rglob('*.incomplete'))
    hub.faults.clear()
    ltzoo.create_model(f'hf-hub:{REPO}', pretrained=True)


def test_what_is_not_there_or_not_for_everyone(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, {'config.json': files['config.json'], 'notes.txt': b''})
    hub.add('someone/pickled', {'config.json': files['config.json'], 'pytorch_model.bin': b'cos\nsystem'})
    hub.add('someone/raw', {'best.pth': b'cos\nsystem'})
    hub.add('someone/gated', files, gated=True)
    assert 'hf-hub:someone/missing does not exist, or is private' in refused('hf-hub:someone/missing')
    assert "the repository has no revision 'v9'" in refused(f'hf-hub:{REPO}@v9')
    assert refused(f'hf-hub:{REPO}') == f'hf-hub:{REPO} has no file model.safetensors; it has config.json, notes.txt'
    pickled = refused('hf-hub:someone/pickled')
    assert 'has no safetensors, only pytorch_model.bin, a pickle' in pickled
    assert 'tools/convert.py pytorch_model.bin --from timm --arch NAME --to DIR' in pickled
    assert 'only best.pth, a pickle' in refused('hf-hub:someone/raw')
    assert not {'pytorch_model.bin', 'best.pth'} & {name for name, _ in hub.sent}
    assert 'hf-hub:someone/gated is gated: ask for access' in refused('hf-hub:someone/gated')
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    ltzoo.create_model('hf-hub:someone/gated', pretrained=True)
    for name in ('hf-hub:nobody', 'hf-hub:a b/c', 'hf-hub:', 'hf-hub:a/b/c/d'):
        assert 'names no repository: write hf-hub:ORG/NAME' in refused(name)


def test_timm_s_weights_come_the_same_way(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from safetensors.torch import save

    torch.manual_seed(1)
    state = timm.create_model('test_resnet', pretrained=False).state_dict()
    repo = timm.get_pretrained_cfg('test_resnet').hf_hub_id
    hub.add(repo, {'model.safetensors': save(state), 'pytorch_model.bin': b'never'})
    model = ltzoo.create_model('timm/test_resnet', pretrained=True, num_classes=7)
    assert torch.equal(model.state_dict()['conv1.0.weight'], state['conv1.0.weight'])
    assert model.num_classes == 7
    # As verified with an overlay that names no other place.
    for arguments in ({}, {'num_classes': 7}):
        overlaid = ltzoo.create_model(
            'timm/test_resnet', pretrained=True, pretrained_cfg_overlay={'crop_pct': 0.5}, **arguments
        )
        assert torch.equal(overlaid.state_dict()['conv1.0.weight'], state['conv1.0.weight'])
        assert overlaid.pretrained_cfg['crop_pct'] == 0.5
    cosine = ltzoo.create_model('timm/test_resnet', pretrained=True, num_classes=7, head='cosine')
    assert torch.equal(cosine.state_dict()['conv1.0.weight'], state['conv1.0.weight'])
    hub.repositories.clear()
    assert 'does not exist' in refused('timm/test_resnet')
    with pytest.raises(DownloadError, match='does not exist'):
        ltzoo.create_model('timm/test_resnet', pretrained=True, pretrained_cfg=None, pretrained_cfg_overlay={'mean': 0})


def test_timm_s_weights_that_it_would_load_by_a_rule_of_their_own(hub: Hub) -> None:
    import timm
    from safetensors.torch import save

    name = 'vit_tiny_patch16_224.augreg_in21k_ft_in1k'
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.custom_load
    # Offline timm itself tries for a minute.
    assert f'hf-hub:{cfg.hf_hub_id} does not exist' in refused(f'timm/{name}')
    torch.manual_seed(1)
    state = timm.create_model(name, pretrained=False).state_dict()
    hub.add(cfg.hf_hub_id, {'model.safetensors': save(state)})
    for arguments in ({}, {'num_classes': 7}):
        model = ltzoo.create_model(f'timm/{name}', pretrained=True, **arguments)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if not arguments or 'head' not in k)
    hub.faults['model.safetensors'] = 'flip'
    hub.repositories[cfg.hf_hub_id].commit({'model.safetensors': save({**state, 'head.bias': state['head.bias'] + 1})})
    with pytest.raises(DownloadError, match='came damaged or is not what was published'):
        ltzoo.create_model(f'timm/{name}', pretrained=True)


def test_timm_s_pickles_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setattr(timm, 'create_model', None)
    for name in ('legacy_seresnet18', 'gcvit_xxtiny.in1k'):
        url = timm.get_pretrained_cfg(name).url
        with pytest.raises(NoWeightsError, match=rf'timm/{name} has no safetensors, only a pickle.*trust {url}, down'):
            ltzoo.create_model(f'timm/{name}', pretrained=True)


@pytest.mark.parametrize('library', ['httpx', 'httpx2'])
def test_limits_are_of_the_library_that_the_client_is_built_on(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    http = pytest.importorskip(library)
    client = http.Client()
    monkeypatch.setattr('ltzoo.models.download.get_session', lambda: client)
    limits = _timeout()
    assert isinstance(limits, http.Timeout)
    assert 1 < limits.connect < 2 < limits.read


def test_no_way_to_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    probe()
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        use_endpoint(monkeypatch, f'http://127.0.0.1:{taken.getsockname()[1]}')
        assert 'cannot be reached' in refused(f'hf-hub:{REPO}')
        with pytest.raises(DownloadError, match='cannot be reached'):
            probe()
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    assert 'cannot be reached (HF_HUB_OFFLINE is set), and config.json is not in the cache' in refused(f'hf-hub:{REPO}')
    with pytest.raises(DownloadError, match='HF_HUB_OFFLINE is set'):
        probe()


def test_a_server_that_takes_the_call_and_says_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # A full queue of connections that nobody accepts: new ones hang, as behind a firewall.
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        use_endpoint(monkeypatch, f'http://127.0.0.1:{silent.getsockname()[1]}')
        assert 'cannot be reached' in refused(f'hf-hub:{REPO}')
        for one in waiting:
            one.close()


def test_the_hash_of_a_file_is_that_of_sha256sum(tmp_path: Path) -> None:
    file = tmp_path / 'file'
    file.write_bytes(b'hello\n')
    assert file_hash(file) == '5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03'
    assert os.listdir(tmp_path) == ['file']
