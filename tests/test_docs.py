"""What the documentation shows runs as it stands."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import ltzoo
from ltzoo.evaluation import evaluate_model
from ltzoo.plans.plan import load_plan, plan_jobs
from ltzoo.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCKS = [
    block
    for page in ('extending', 'evaluation')
    for block in re.findall(
        r'```python\n(.*?)```', (ROOT / 'docs' / f'{page}.md').read_text(encoding='utf-8'), re.DOTALL
    )
    if 'DIR' not in block
]


# One process for all, which spares an import of torch for each; the last name told is that of the one that fails.
IN_TURN = """
import runpy, sys
for file in sys.argv[1:]:
    print(file, flush=True)
    runpy.run_path(file, run_name='__main__')
"""


def test_the_python_that_readme_and_pages_show_runs(tmp_path: Path) -> None:
    (tmp_path / 'recipes').symlink_to(ROOT / 'recipes')
    Image.effect_noise((40, 30), 80).save(tmp_path / 'image.jpg')
    first = re.search(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(encoding='utf-8'), re.DOTALL)
    assert first is not None
    blocks = {'readme': first[1] + 'assert (tuple(logits.shape), model.num_classes) == ((1, 100), 100)\n'}
    blocks |= dict(zip(('loss', 'scores', 'objective', 'adjusted_logits'), BLOCKS, strict=True))
    for name, block in blocks.items():
        (tmp_path / f'{name}.py').write_text(block, encoding='utf-8')
    words = [sys.executable, '-c', IN_TURN, *(f'{name}.py' for name in blocks)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_lists_the_checkpoints_with_their_scores() -> None:
    rows = re.findall(r'^\| `(resnet\S+)` \| (.*) \|$', (ROOT / 'README.md').read_text(encoding='utf-8'), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(ltzoo.list_pretrained())
    for name, cells in rows:
        results = ltzoo.get_results(name)
        scores = [results['scores'][key] for key in ('top1', 'many', 'medium', 'few', 'ece')]
        told = ['none' if score is None else f'{score["mean"]:.2f}' for score in scores]
        assert cells.split(' | ')[1:] == [str(len(results['seeds'])), *told], name


@pytest.mark.parametrize('page', PAGES, ids=[page.stem for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
    targets = [target for target in re.findall(r'\]\(([^)\s]+)\)', text) if not target.startswith('http')]
    for target in targets:
        file, _, anchor = target.partition('#')
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r'^#+ (.*)$', place.read_text(encoding='utf-8'), re.MULTILINE)
            # As GitHub makes them.
            anchors = {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}
            assert anchor in anchors, target


def test_the_plan_of_own_losses_is_one(tmp_path: Path) -> None:
    (tmp_path / 'recipes').symlink_to(ROOT / 'recipes')
    block = re.search(
        r'```yaml\n(output.*?)```', (ROOT / 'docs' / 'extending.md').read_text(encoding='utf-8'), re.DOTALL
    )
    assert block is not None
    (tmp_path / 'my_plan.yaml').write_text(block[1])
    jobs = plan_jobs(load_plan(tmp_path / 'my_plan.yaml'), tmp_path, tmp_path / 'train.py', into_folders=False)
    assert [job.recipe.objective.name for job in jobs[:3]] == ['ce', 'logit_adjusted', 'smoothed']
    assert len(jobs) == 9


METHODS = {
    'cross-entropy': 'ce',
    'focal loss': 'focal',
    'LDAM-DRW': 'ldam_drw',
    'LDAM-DRW + SAM': 'ldam_drw_sam',
    'balanced softmax': 'bs',
    'BCL': 'bcl',
    'GKP/GSA on BCL, `gkpgsa.yaml`': 'gkpgsa',
}


@pytest.mark.parametrize(
    ('section', 'tag'),
    [
        ('CIFAR-100-LT, r = 100', 'cifar100_lt_r100'),
        ('CIFAR-100-LT, r = 50', 'cifar100_lt_r50'),
        ('CIFAR-10-LT, r = 100', 'cifar10_lt_r100'),
    ],
)
def test_the_results_of_the_zoo_are_those_of_its_files(section: str, tag: str) -> None:
    text = (ROOT / 'docs' / 'results.md').read_text(encoding='utf-8')
    table = text.split(f'## {section}, ResNet-32\n')[1].split('\n#')[0]
    rows = {name: cells for name, cells in re.findall(r'^\| (.+?) \| (\d \(seed.*) \|$', table, re.MULTILINE)}
    published = {name: f'resnet32_cifar_{method}.{tag}' for name, method in METHODS.items()}
    assert rows.keys() == {name for name, model in published.items() if model in ltzoo.list_pretrained()}
    for name, cells in rows.items():
        results = ltzoo.get_results(published[name])
        seeds, *told = cells.split(' | ')
        assert int(seeds.partition(' ')[0]) == len(results['seeds'])
        for key, cell in zip(('top1', 'many', 'medium', 'few', 'ece'), told, strict=True):
            score = results['scores'][key]
            deviation = '' if score is None or score['std'] is None else f' ± {score["std"]:.2f}'
            assert cell == ('none' if score is None else f'{score["mean"]:.2f}{deviation}'), (name, key)


def commands_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the scripts that a page calls, each with the words behind it."""
    for block in re.findall(r'```bash\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL):
        given = ''
        for line in block.splitlines():
            line = line.partition(' #')[0]
            if line.startswith('set -- '):
                given = line.removeprefix('set -- ')
            for tool, words in re.findall(r'((?:tools|recipes)/\w+\.py)([^&;]*)', line.replace('"$@"', given)):
                yield tool, shlex.split(words)


def words_of(option: str, words: list[str]) -> list[str]:
    behind = words[words.index(option) + 1 :] if option in words else []
    return list(itertools.takewhile(lambda word: not word.startswith('--'), behind))


@pytest.mark.parametrize('page', PAGES, ids=[page.stem for page in PAGES])
def test_options_and_keys_in_commands_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for tool, words in commands_of(page):
        sources = [Path(tool)]
        if tool == 'tools/benchmark.py':
            sources.append(Path('tools', 'benchmarks', f'{words[0]}.py'))
        if 'add_correction(' in Path(tool).read_text(encoding='utf-8'):
            sources.append(Path('ltzoo', 'command_line.py'))
        known = {
            option
            for file in sources
            for option in re.findall(r"add_argument\(\s*'(--[\w-]+)'", file.read_text(encoding='utf-8'))
        }
        # In brackets, too.
        for option in re.findall(r'(?<![\w-])--[a-z][\w-]*', ' '.join(words)):
            assert option in known, f'{tool} has no {option}'
        files = [Path(word) for word in words if re.fullmatch(r'recipes/\S+\.yaml', word)]
        if tool == 'recipes/train.py' and files:
            load_recipe(files[0], [word for word in words if re.match(r'[a-z_.]+=', word)])
        elif tool == 'tools/reproduce.py' and files:
            plan = load_plan(files[0])
            # All runs of a plan would take long.
            chosen = words_of('--only', words) or list(plan.runs)[:1]
            changes = words_of('--set', words)
            plan_jobs(plan, files[0].parent, Path(), chosen, None, changes, plan.seeds[:1], into_folders=False)
        elif '--set' in words:
            load_recipe(files[0] if files else Path('recipes/cifar100_lt_r100/bcl.yaml'), words_of('--set', words))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'change', 'label'),
    [
        ('resnet32_cifar_ce.cifar100_lt_r100', {'tau': 1.0}, 'logits adjusted after training, tau 1'),
        ('resnet32_cifar_ce.cifar100_lt_r100', {'tau_norm': 1.0}, 'classifier tau-normalised, tau 1'),
        ('resnet32_cifar_ce.cifar10_lt_r100', {'tau': 1.0}, 'logits adjusted after training, tau 1'),
        ('resnet32_cifar_ce.cifar10_lt_r100', {'tau_norm': 1.0}, 'classifier tau-normalised, tau 1'),
    ],
)
def test_scores_of_corrected_networks_are_those_of_the_page(
    name: str, change: dict[str, float], label: str, cifar_dir: Path
) -> None:
    tag = name.partition('.')[2]
    section = 'CIFAR-100-LT' if tag.startswith('cifar100') else 'CIFAR-10-LT'
    page = (ROOT / 'docs' / 'results.md').read_text(encoding='utf-8').split(f'## {section}, r = 100, ResNet-32\n')[1]
    row = re.search(rf'^\| {re.escape(label)} \| 1 \| (.*) \|$', page, re.MULTILINE)
    assert row is not None
    scores = evaluate_model(name, tag, data_dir=cifar_dir, **change)  # type: ignore[arg-type]
    for key, cell in zip(('top1', 'many', 'medium', 'few', 'ece'), row[1].split(' | '), strict=True):
        assert (scores[key] is None) if cell == 'none' else (scores[key] == pytest.approx(float(cell), abs=0.05)), key
