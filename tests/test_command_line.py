"""How tools end, and the options that several of them have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltzoo.command_line import at_least, check_outputs, command_line
from ltzoo.errors import LtzooError

HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')
ROOT = Path(__file__).resolve().parents[1]
# What needs the standard library alone is spared the import of all that `ltzoo` itself imports.
BARE = 'import sys, types; sys.modules["ltzoo"] = bare = types.ModuleType("ltzoo"); bare.__path__ = ["ltzoo"]'


@pytest.mark.parametrize(
    ('error', 'code', 'told'),
    [
        (LtzooError('there is no x: take y'), 2, 'tool.py: there is no x: take y\n'),
        (KeyboardInterrupt(), 130, '\ntool.py: stopped\n'),
        (ModuleNotFoundError(name='pydantic'), 2, "tool.py: pydantic is missing: pip install 'ltzoo[train]'\n"),
        (PermissionError(13, 'Permission denied', '/x'), 2, 'tool.py: /x cannot be used: Permission denied\n'),
    ],
)
def test_what_a_tool_ends_with(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, 'argv', ['/some/where/tool.py', 'x'])

    @command_line
    def main() -> int:
        raise error

    assert main() == code
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(('asked', 'huge'), [(None, True), ('0', False)])
def test_large_tensors_lie_in_huge_pages_unless_the_user_says_no(asked: str | None, huge: bool) -> None:
    if '[madvise]' not in (HUGE_PAGES.read_text() if HUGE_PAGES.exists() else ''):
        pytest.skip(f'the kernel does not leave huge pages to the process: {HUGE_PAGES} is not on madvise')
    program = """
import resource, sys, torch
from ltzoo.command_line import command_line

@command_line
def main():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**26)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return 0

sys.exit(main())
"""
    environment = {key: value for key, value in os.environ.items() if key != 'THP_MEM_ALLOC_ENABLE'}
    environment |= {} if asked is None else {'THP_MEM_ALLOC_ENABLE': asked}
    done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=True)
    # 256 MB are 65,536 pages of 4 kB and 128 of 2 MB.
    assert (int(done.stdout) < 20_000) == huge


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='this PyTorch has no oneDNN')
@pytest.mark.parametrize(('asked', 'forgets'), [(None, True), ('1024', False)])
def test_few_shapes_of_convolutions_are_remembered_unless_the_user_says_more(asked: str | None, forgets: bool) -> None:
    program = """
import sys, torch
from ltzoo.command_line import command_line

@command_line
def main():
    layer = torch.nn.Conv2d(3, 16, 3)
    for count in [*range(2, 302)] * 2:
        layer(torch.zeros(count, 3, 8, 8))
    return 0

sys.exit(main())
"""
    name = 'ONEDNN_PRIMITIVE_CACHE_CAPACITY'
    environment = {**{key: value for key, value in os.environ.items() if key != name}, 'ONEDNN_VERBOSE': '2'}
    environment |= {} if asked is None else {name: asked}
    done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=True)
    generated = sum('create:cache_miss,cpu,convolution' in line for line in done.stdout.splitlines())
    assert generated == (600 if forgets else 300)


@pytest.mark.parametrize('tool', ['recipes/train.py', 'tools/reproduce.py'])
def test_without_the_packages_of_training_a_sentence_says_what_to_install(tool: str, tmp_path: Path) -> None:
    # One that stands in the way is found before the one that is installed.
    (tmp_path / 'omegaconf.py').write_text("raise ModuleNotFoundError(name='omegaconf')")
    words = [sys.executable, ROOT / tool, ROOT / 'recipes' / 'digits_lt' / 'ce.yaml']
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    told = f"{Path(tool).name}: omegaconf is missing: pip install 'ltzoo[train]'\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_a_missing_package_of_another_kind_keeps_its_traceback() -> None:
    @command_line
    def main() -> int:
        raise ModuleNotFoundError(name='elsewhere')

    with pytest.raises(ModuleNotFoundError):
        main()


def test_a_number_that_is_too_small() -> None:
    at_least('--jobs', 1, 1)
    with pytest.raises(LtzooError, match=r'^--jobs must be 1 or more, not 0$'):
        at_least('--jobs', 0, 1)


def test_files_for_what_a_tool_writes(tmp_path: Path) -> None:
    table, figure = tmp_path / 'a.json', tmp_path / 'a.png'
    check_outputs({'--json': table, '--csv': None}, {'--plot': figure})
    with pytest.raises(LtzooError, match=r'a\.json is given for --json and for --csv: each needs a file of its own$'):
        check_outputs({'--json': table, '--csv': table}, {'--plot': None})
    with pytest.raises(LtzooError, match=r'a\.png is given for --json and for --plot: each needs a file of its own$'):
        check_outputs({'--json': figure}, {'--plot': figure})
    with pytest.raises(LtzooError, match='no plot is made in the format json'):
        check_outputs({}, {'--plot': table})
    with pytest.raises(LtzooError, match='there is no folder'):
        check_outputs({'--json': tmp_path / 'none' / 'a.json'}, {})


def test_a_reader_that_has_gone() -> None:
    program = (
        f'{BARE}; from ltzoo.command_line import command_line; sys.stdin.readline(); '
        'sys.exit(command_line(lambda: print("word") or 0)())'
    )
    tool = subprocess.Popen(
        [sys.executable, '-c', program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert tool.stdin is not None and tool.stdout is not None and tool.stderr is not None
    tool.stdout.close()
    tool.stdin.write(b'go\n')
    tool.stdin.close()
    assert (tool.wait(60), tool.stderr.read()) == (141, b'')
    tool.stderr.close()


MY_PARTS = """
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ltzoo.losses import CrossEntropy, register_objective


@register_objective('mine')
class Mine(CrossEntropy):
    pass


class Network(nn.Module):
    def __init__(self, num_classes=1000, in_chans=3, width=8, **kwargs):
        super().__init__()
        self.num_classes, self.num_features = num_classes, width
        self.conv, self.fc = nn.Conv2d(in_chans, width, 3), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


default_cfgs = generate_default_cfgs({'my_network': {'input_size': (3, 8, 8), 'num_classes': 10, 'classifier': 'fc'}})


@register_model
def my_network(pretrained=False, **kwargs):
    return build_model_with_cfg(Network, 'my_network', pretrained, **kwargs)
"""
# Several scripts in one process, which spares an import of torch for each.
IN_TURN = """
import runpy, sys
for sys.argv in {}:
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        assert not end.code, sys.argv
"""


def test_parts_of_ones_own_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'my_parts.py').write_text(MY_PARTS)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setenv('LTZOO_IMPORTS', 'my_parts')
    train = ['recipes/train.py', 'recipes/digits_lt/ce.yaml', 'objective={name: mine}']
    run, out, scores = (str(tmp_path / name) for name in ('run', 'out', 'scores.json'))
    options = ['model.name=timm/my_network', 'model.width=4', 'epochs=1', 'schedule.warmup_epochs=0', f'output={run}']
    calls = [
        [*train, *options, '--no-progress'],
        ['tools/export.py', run, '--to', out],
        ['tools/evaluate.py', f'local-dir:{out}', '--data', 'digits_lt', '--json', scores],
        ['tools/profile_data.py', 'digits_lt', '--skip-images'],
    ]
    done = subprocess.run([sys.executable, '-c', IN_TURN.format(calls)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    trained, exported = (json.loads(Path(file).read_text()) for file in (f'{run}/results.json', scores))
    assert [row['accuracy'] for row in exported['per_class']] == [row['accuracy'] for row in trained['per_class']]
    monkeypatch.setenv('LTZOO_IMPORTS', 'json, your_parts')
    assert command_line(lambda: 0)() == 2
    said = "LTZOO_IMPORTS: your_parts cannot be imported (ModuleNotFoundError: No module named 'your_parts')"
    assert said in capsys.readouterr().err
