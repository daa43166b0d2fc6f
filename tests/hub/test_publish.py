"""To the Hub: one commit of what is right, and nothing of what is not; read back by an independent server."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, Hub
from safetensors.torch import load_file, save_file
from test_download import hub as hub
from test_download import use_endpoint
from torch import nn

import ltzoo
from ltzoo.hub import PublishError, export_model, publish, release
from ltzoo.models.download import DownloadError

Train = Callable[..., nn.Module]
ROOT = Path(__file__).resolve().parents[2]
REPO = 'zoo/pets'
FILES = {
    *('model.safetensors', 'config.json', 'README.md', 'results.json', 'vectors.safetensors', 'log.jsonl'),
    'curves.png',
}
VECTORS = 'vectors.safetensors'


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HF_TOKEN', TOKEN)


@pytest.fixture(scope='session')
def pets(train: Train, record: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(train('resnet20_cifar'), record, tmp_path_factory.mktemp('published'), 'pets')


@pytest.fixture
def folder(pets: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pets, tmp_path / 'pets')


def make(model: nn.Module, lt: dict[str, Any], place: Path, name: str) -> Path:
    run = place / f'{name}_run'
    export_model(model, run / 'model', lt, input_size=(3, 16, 16), mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3))
    (run / 'recipe.yaml').write_text('epochs: 37\n')
    (run / 'log.jsonl').write_text('{"epoch": 0}\n')
    (run / 'curves.png').write_bytes(b'curves')
    record = {
        'model': 'resnet20_cifar',
        **lt['scores'],
        'split': 'test',
        'seed': 8,
        'training_seconds': 12.5,
        'environment': {'commit': 'abc', 'command': 'recipes/train.py own.yaml'},
        'recipe': lt['recipe'],
        'per_class': [{'class': c, 'train_count': n, 'accuracy': 50.0} for c, n in enumerate(lt['class_counts'])],
    }
    (run / 'results.json').write_text(json.dumps(record))
    release([run], place / name)
    return place / name


def test_all_of_it_is_one_commit_that_loads_back(
    hub: Hub, token: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = publish(str(folder), REPO)
    repository = hub.repositories[REPO]
    assert hub.pushes == 1
    assert done.url == f'{hub.url}/{REPO}/commit/{repository.branches["main"]}'
    published = repository.files('main')
    assert published is not None
    assert set(published) == set(done.files) == FILES
    for name in FILES - {'README.md'}:
        assert published[name] == (folder / name).read_bytes()
    # The card names the place where it is now.
    card = published['README.md'].decode()
    assert f"'hf-hub:{REPO}', pretrained=True" in card
    assert 'FOLDER' not in card
    monkeypatch.delenv('HF_TOKEN')
    model = ltzoo.create_model(f'hf-hub:{REPO}', pretrained=True).eval()
    vectors = load_file(folder / 'vectors.safetensors')
    with torch.inference_mode():
        torch.testing.assert_close(model(vectors['images']), vectors['logits'])


def test_the_zoos_own_place_is_loaded_by_name(
    hub: Hub, token: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = json.loads((folder / 'results.json').read_text())
    (folder / 'results.json').write_text(json.dumps({**results, 'name': 'resnet32_pets_ce.pets', 'hub_id': REPO}))
    # A package that has no weights of that name, has others, has these.
    publish(folder, f'{REPO}_none')
    has = {'sha256': '0'}
    monkeypatch.setattr(sys.modules['ltzoo.hub.publish'], 'get_results', lambda name: has)
    publish(folder, REPO)
    other = (hub.repositories[REPO].files('main') or {})['README.md']
    assert f"'hf-hub:{REPO}', pretrained=True".encode() in other
    has['sha256'] = results['sha256']
    publish(folder, REPO)
    publish(folder, f'{REPO}_copy')
    card, copy = ((hub.repositories[repo].files('main') or {})['README.md'] for repo in (REPO, f'{REPO}_copy'))
    assert b"'resnet32_pets_ce.pets', pretrained=True" in card
    assert f"'hf-hub:{REPO}_copy', pretrained=True".encode() in copy


def test_again_changes_nothing_and_another_model_needs_force(
    hub: Hub, token: None, folder: Path, train: Train, lt: dict[str, Any], tmp_path: Path
) -> None:
    publish(folder, REPO)
    again = publish(folder, REPO)
    assert (again.files, again.url, hub.pushes) == ((), None, 1)
    (folder / 'log.jsonl').write_text('{"epoch": 0}\n{"epoch": 1}\n')
    assert publish(folder, REPO).files == ('log.jsonl',)
    model = train('resnet20_cifar')
    with torch.no_grad():
        model.fc.bias.add_(1)
    other = make(model, lt, tmp_path, 'other')
    before = hub.repositories[REPO].branches['main']
    with pytest.raises(PublishError, match=f'{REPO} holds another model already: give another name, or .* --force'):
        publish(other, REPO)
    assert hub.repositories[REPO].branches['main'] == before
    publish(other, REPO, force=True)
    weights = (hub.repositories[REPO].files('main') or {})['model.safetensors']
    assert weights == (other / 'model.safetensors').read_bytes()
    for number, file in enumerate(('pytorch_model.bin', 'model.onnx', 'model.gguf', 'tf_model.h5')):
        hub.add(f'zoo/old{number}', {file: b'other weights'})
        with pytest.raises(PublishError, match=f'zoo/old{number} holds another model already'):
            publish(folder, f'zoo/old{number}')


def test_nothing_of_a_replaced_model_stays(hub: Hub, token: None, folder: Path) -> None:
    old = {
        **dict.fromkeys(['model.safetensors', 'pytorch_model.bin', 'accuracy.png', '.eval_results/old.yaml'], b'old'),
        **dict.fromkeys(['.gitattributes', 'LICENSE'], b'kept'),
    }
    repository = hub.add(REPO, old)
    planned = publish(folder, REPO, force=True, dry_run=True)
    assert repository.files('main') == old
    done = publish(folder, REPO, force=True)
    assert set(done.removed) == set(planned.removed) == {'pytorch_model.bin', 'accuracy.png', '.eval_results/old.yaml'}
    assert set(repository.files('main') or ()) == FILES | {'.gitattributes', 'LICENSE'}
    assert hub.pushes == 1
    # A plot that is no longer of the same model goes too, what others put beside it does not.
    repository.commit({'accuracy.png': b'old', 'pytorch_model.bin': b'somebody else wants it'})
    assert publish(folder, REPO).removed == ('accuracy.png',)
    assert publish(folder, REPO).url is None


def test_private(hub: Hub, token: None, folder: Path) -> None:
    publish(folder, REPO, private=True)
    assert hub.repositories[REPO].private
    assert publish(folder, REPO, private=True).files == ()
    hub.visibility = 'private'
    publish(folder, 'zoo/default')
    assert hub.repositories['zoo/default'].private
    public = hub.add('zoo/public', {})
    with pytest.raises(PublishError, match='zoo/public exists and is public'):
        publish(folder, 'zoo/public', private=True)
    assert public.files('main') == {}


def test_a_dry_run_changes_nothing(hub: Hub, token: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(publish(folder, REPO, dry_run=True).files) == FILES
    assert hub.repositories == {}
    monkeypatch.setenv('HF_TOKEN', 'hf_unknown')
    with pytest.raises(PublishError, match='the Hub answers 401; log in'):
        publish(folder, REPO, dry_run=True)
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(PublishError, match='nobody is logged in; log in'):
        publish(folder, REPO, dry_run=True)


def test_a_branch(hub: Hub, token: None, folder: Path) -> None:
    publish(folder, REPO, revision='candidate')
    assert hub.repositories[REPO].files('main') == {}
    assert set(hub.repositories[REPO].files('candidate') or ()) == FILES
    assert publish(folder, REPO, revision='candidate').files == ()
    card = (hub.repositories[REPO].files('candidate') or {})['README.md'].decode()
    assert f"create_model_and_transforms('hf-hub:{REPO}@candidate', pretrained=True)" in card
    # A new branch begins with what main holds, which may be another model.
    other = hub.add('zoo/old', {'model.safetensors': b'old'})
    with pytest.raises(PublishError, match='zoo/old holds another model already'):
        publish(folder, 'zoo/old', revision='candidate')
    assert set(other.branches) == {'main'}
    publish(folder, 'zoo/old', revision='candidate', force=True)
    assert other.files('main') == {'model.safetensors': b'old'}
    assert set(other.files('candidate') or ()) == FILES


def test_no_name_of_a_branch(tmp_path: Path) -> None:
    for name in ('my branch', '', 'a..b', '-new', 'a/', 'a//b', 'a.lock', 'a/.b', 'a^', '@', 'a@{1}', 'a\n'):
        with pytest.raises(PublishError, match=f'{re.escape(repr(name))} is no name of a branch'):
            publish(tmp_path / 'none', REPO, revision=name)


@pytest.mark.parametrize('name', ['v1.0', 'feature/long-tail_2', '100%'])
def test_unusual_names_of_branches(hub: Hub, token: None, folder: Path, name: str) -> None:
    publish(folder, REPO, revision=name)
    assert set(hub.repositories[REPO].files(name) or ()) == FILES


def damaged(folder: Path, what: str) -> None:
    results = json.loads((folder / 'results.json').read_text())
    if what == 'weights':
        state = load_file(folder / 'model.safetensors')
        state['fc.bias'] += 0.5
        save_file(state, folder / 'model.safetensors')
    elif what == 'weights and hash':
        import hashlib

        damaged(folder, 'weights')
        results['sha256'] = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
        (folder / 'results.json').write_text(json.dumps(results))
    elif what == 'truncated':
        weights = (folder / 'model.safetensors').read_bytes()[:-9]
        (folder / 'model.safetensors').write_bytes(weights)
        import hashlib

        results['sha256'] = hashlib.sha256(weights).hexdigest()
        (folder / 'results.json').write_text(json.dumps(results))
    elif what == 'images':
        save_file({**load_file(folder / VECTORS), 'images': torch.ones(1, 1, 9)}, folder / VECTORS)
    elif what in ('scores', 'name'):
        del results[what]
        (folder / 'results.json').write_text(json.dumps(results))
    elif what == 'no scores':
        (folder / 'results.json').write_text(json.dumps({**results, 'runs': []}))
    elif what in ('no top1', 'no ece'):
        scores = results['scores']
        scores.pop('ece') if what == 'no ece' else scores.update(top1=None)
        (folder / 'results.json').write_text(json.dumps(results))
    elif what == 'scores of other runs':
        results['scores']['top1']['mean'] = 99.0
        (folder / 'results.json').write_text(json.dumps(results))
    elif what in ('lt', 'label_names', 'mean', 'input_size'):
        config = json.loads((folder / 'config.json').read_text())
        if what == 'lt':
            config['lt']['scores']['many'] = 99.0
        elif what == 'input_size':
            config['pretrained_cfg']['input_size'] = [3, 32, 32]
        elif what == 'mean':
            config['pretrained_cfg']['mean'] = [0.0] * len(config['pretrained_cfg']['mean'])
        else:
            config['label_names'] = ['a']
        (folder / 'config.json').write_text(json.dumps(config))
    elif what == 'pickle':
        (folder / 'more').mkdir()
        (folder / 'more' / 'checkpoint.pt').write_bytes(b'')
    else:
        (folder / what).unlink()


@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('weights', r'the weights in .* have SHA-256 [0-9a-f]{64}, its results are of [0-9a-f]{64}'),
        ('weights and hash', r'does not load back equal: .* gives other logits than those stored with it'),
        ('truncated', r'the weights of .* are damaged or of another model'),
        ('images', r'does not load back equal: .*expected input'),
        ('scores', r"results\.json holds no scores: KeyError: 'scores'"),
        ('no scores', r'results\.json holds no scores$'),
        ('no top1', r'results\.json holds no scores$'),
        ('no ece', r'results\.json holds no scores$'),
        ('name', r"results\.json holds no scores: KeyError: 'name'"),
        ('scores of other runs', r'results\.json has scores that are not those of its runs'),
        ('lt', r'config\.json is of another run than results\.json says of the weights'),
        ('label_names', r'config\.json has label_names that are not its class_names'),
        ('input_size', r'config\.json has another input_size, mean or std than the stored images'),
        ('mean', r'config\.json has another input_size, mean or std than the stored images'),
        ('pickle', r'holds checkpoint\.pt, a pickle: only safetensors are published'),
        *((name, rf'lacks {name}: tools/export\.py makes') for name in sorted(FILES - {'curves.png'})),
    ],
)
def test_what_is_not_right_is_not_published(hub: Hub, token: None, folder: Path, what: str, message: str) -> None:
    damaged(folder, what)
    with pytest.raises(ltzoo.LtzooError, match=message):
        publish(folder, REPO)
    assert hub.repositories == {}


def test_who_may_not_write(hub: Hub, folder: Path) -> None:
    with pytest.raises(PublishError, match=f'{REPO} could not be written: .*log in'):
        publish(folder, REPO)
    assert hub.repositories == {}
    with pytest.raises(PublishError, match="'pets' names no repository: write ORG/NAME"):
        publish(folder, 'pets')
    with pytest.raises(PublishError, match='there is no folder'):
        publish(folder / 'missing', REPO)


def test_a_change_meanwhile_is_not_overwritten(hub: Hub, token: None, folder: Path) -> None:
    publish(folder, REPO)
    (folder / 'log.jsonl').write_text('{"epoch": 7}\n')
    hub.before_commit = lambda: hub.repositories[REPO].commit({'log.jsonl': b'theirs'})
    with pytest.raises(PublishError, match='was changed meanwhile'):
        publish(folder, REPO)
    assert (hub.repositories[REPO].files('main') or {})['log.jsonl'] == b'theirs'


def test_a_repository_made_meanwhile_is_not_overwritten(
    hub: Hub, token: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = huggingface_hub.HfApi.create_repo

    def late(api: huggingface_hub.HfApi, *args: Any, **kwargs: Any) -> Any:
        hub.add(REPO, {'model.safetensors': b'theirs'})
        return create(api, *args, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, 'create_repo', late)
    with pytest.raises(PublishError, match='holds another model already'):
        publish(folder, REPO)
    assert hub.repositories[REPO].files('main') == {'model.safetensors': b'theirs'}


def test_no_way_to_the_hub(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        use_endpoint(monkeypatch, f'http://127.0.0.1:{taken.getsockname()[1]}')
        with pytest.raises(DownloadError, match='cannot be reached'):
            publish(folder, REPO)


def test_the_tool_and_an_independent_reader(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Pushed by the command line with nothing patched, kept as a git folder, read through olah."""
    environment = {**os.environ, 'HF_ENDPOINT': hub.url, 'HF_TOKEN': TOKEN, 'HF_HOME': str(tmp_path / 'home')}
    command = [sys.executable, 'tools/publish.py', str(folder), '--to', REPO]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"ltzoo.create_model('hf-hub:{REPO}', pretrained=True) loads it" in done.stdout
    olah = shutil.which('olah-cli', path=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    if olah is None:
        pytest.skip('olah is not installed: pip install olah')
    mirror = tmp_path / 'mirrors' / 'models' / REPO
    mirror.mkdir(parents=True)
    git = ['git', '-C', str(mirror), '-c', 'user.name=me', '-c', 'user.email=me@example.org']
    subprocess.run([*git, 'init', '-q', '-b', 'main'], check=True)
    for name, data in (hub.repositories[REPO].files('main') or {}).items():
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).write_bytes(data)
    subprocess.run([*git, 'add', '-A'], check=True)
    subprocess.run([*git, 'commit', '-q', '-m', 'all'], check=True)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    config = tmp_path / 'olah.toml'
    config.write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{tmp_path / "repos"}"\n'
        f'mirrors-path = ["{tmp_path / "mirrors"}"]\n[accessibility]\noffline = true\n'
    )
    url = f'http://127.0.0.1:{port}'
    with open(tmp_path / 'olah.log', 'w') as log:
        server = subprocess.Popen([olah, '-c', str(config)], stdout=log, stderr=log, cwd=tmp_path)
    try:
        wait_for(url, server)
        environment.update(HF_ENDPOINT=url, HF_HOME=str(tmp_path / 'other_home'))
        script = (
            'import sys, torch, ltzoo\n'
            'from safetensors.torch import load_file\n'
            f'model = ltzoo.create_model("hf-hub:{REPO}", pretrained=True).eval()\n'
            'stored = load_file(sys.argv[1])\n'
            'with torch.inference_mode(): torch.testing.assert_close(model(stored["images"]), stored["logits"])\n'
            'print("equal")\n'
        )
        command = [sys.executable, '-c', script, str(folder / 'vectors.safetensors')]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.stdout == 'equal\n', done.stderr + (tmp_path / 'olah.log').read_text()[-3000:]
    finally:
        server.terminate()
        server.wait(10)


def wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    session = huggingface_hub.get_session()
    while time.monotonic() < end and server.poll() is None:
        try:
            session.head(url)
            return
        except Exception:
            subprocess.run([sys.executable, '-c', 'import time; time.sleep(0.3)'], check=True)
    raise AssertionError('olah does not answer')
