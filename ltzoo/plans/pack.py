"""Pack what trainings need on a machine without a network into one small folder.

plan.yaml, recipes/, ltzoo/, tools/reproduce.py    the code, as git tracks it
data/                                              the images that these recipes use, see `ltzoo.data.sources`
wheels/                                            packages that the machine lacks
COMMIT                                             what the code is, for the runs' environment.json
README.md                                          the command to run there
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import yaml

from ltzoo.data import load_data, source_of
from ltzoo.data.sources.packed_cifar import pack_file, write_packed
from ltzoo.errors import LtzooError
from ltzoo.files import new_folder, writing
from ltzoo.models.entries import entry_of
from ltzoo.models.factory import ModelFilesError
from ltzoo.plans.plan import Job, Plan, load_plan
from ltzoo.training.prepare import check_names, prepare_data, teachers_of
from ltzoo.training.recipe import Recipe, with_bases
from ltzoo.training.run import COMMIT_FILE, commit_of

__all__ = ['PackError', 'pack', 'untracked']

_CODE = ('ltzoo', 'recipes', 'tools/reproduce.py')
_LEFT_OUT = ('ltzoo/models/weights/', 'recipes/plans/')
_PACKED = ('cifar10', 'cifar100')
# pip compares these literally; manylinux2014 stands for the older ones too.
_PLATFORMS = ('manylinux_2_28_x86_64', 'manylinux_2_27_x86_64', 'manylinux_2_17_x86_64', 'manylinux2014_x86_64')
# They need PyTorch, which is gigabytes, and there already.
_ON_PYTORCH = ('accelerate', 'timm')

_README = """# {title}

The trainings of `plan.yaml`, ltzoo at commit {commit}. On a machine with PyTorch and the packages that ltzoo needs and
that are not in `wheels` (`--with` of `--pack` brings them), no network needed, in this folder:

```bash
{command}
```

Whatever stops it, the same command goes on. `--minutes M` ends its trainings in time (leave a minute for the start and
the archive), `--archive DIR/runs.tar.gz` makes files to bring home, with `--with-unfinished` the checkpoints of
unfinished runs too; there `python tools/reproduce.py PLAN.yaml {same}--collect FILE ...` puts them in their place.
Where this folder may be put in place anew between two calls, work in a copy: what is trained lies below it.
"""


class PackError(LtzooError, ValueError):
    """What cannot be packed; the message says why and what would be right."""


def untracked(root: Path) -> list[str]:
    """Return the Python files that a pack leaves out because git does not track them."""
    return [name for name in _git(root, '--others', '--exclude-standard') if name.endswith('.py')]


def pack(
    folder: Path,
    root: Path,
    plan: Plan,
    file: Path,
    jobs: Sequence[Job],
    *,
    changes: Sequence[str] = (),
    packages: Sequence[str] = (),
    python: str | None = None,
) -> dict[str, int]:
    """Write the folder, whole or not at all.

    Args:
        folder: where to; a new or an empty one.
        root: the checkout.
        plan: what is packed of.
        file: where the plan was read.
        jobs: those of its trainings to pack; their `data.data_dir` is this machine's.
        changes: `key=value`, what `plan_jobs` changed in all recipes; the plan there says so.
        packages: names of packages (as pip takes them) whose wheels, and those of what they need, are brought; of
            accelerate and timm, which need PyTorch, their own alone.
        python: the other machine's version of Python, such as 3.12; by default this one's.

    Returns:
        Bytes of each part: code, data, wheels.

    Raises:
        PackError: if the folder is not empty, a recipe, or one that it starts from, is not a file that git tracks in
            the checkout (the commit would not say what was trained), its data or the weights that it starts from cannot
            be packed, LTZOO_IMPORTS names modules, or a wheel cannot be had.
        MissingDataError: if images are missing here.
        DataError: if a pack here lacks some of the images.
        LtzooError: if a recipe names what does not exist, or the folder cannot be written.
    """
    named = os.environ.get('LTZOO_IMPORTS', '')
    if named:
        raise PackError(
            f'LTZOO_IMPORTS={named} cannot be packed, and the other machine would refuse what these modules register: '
            'put the parts under ltzoo/, import them there, and unset it'
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise PackError(f'{folder} cannot be packed into: it is not an empty folder; give a new one')
    recipes = [job.recipe for job in jobs]
    text = _plan_there(root, plan, file, jobs, changes)
    for recipe in recipes:
        # Weights that are not there yet are refused below.
        with suppress(ModelFilesError):
            check_names(recipe)
        if _source(recipe) not in (*_PACKED, 'digits'):
            raise PackError(
                f'the data {recipe.data.name} cannot be packed: CIFAR-10 and CIFAR-100 can, and digits come with '
                'scikit-learn; choose other runs with --only'
            )
        if recipe.data.name.partition(':')[2]:
            raise PackError(
                f'the data {recipe.data.name} cannot be packed: its path is of this machine; leave it out, and '
                'give --data-dir'
            )
        if recipe.model.is_trained or recipe.model.name.startswith(('local-dir:', 'hf-hub:')):
            raise PackError(
                f'the weights that {recipe.model.name} starts from cannot be packed: choose runs that start from none '
                'with --only'
            )
    teachers = _teacher_folders(recipes)
    if any(_name(package) in ('torch', 'torchvision') for package in packages):
        raise PackError(
            '--with: torch and torchvision go with the other machine, and in one version with each other: '
            'leave them out'
        )
    if python is not None and not re.fullmatch(r'3\.\d+', python):
        raise PackError(f'--python must be a version such as 3.12, not {python}')
    version = python or f'{sys.version_info.major}.{sys.version_info.minor}'
    if packages and int(version.partition('.')[2]) < 11:
        raise PackError(
            f'--with: wheels are brought in the versions of constraints.txt, which need Python 3.11 or later, '
            f'not {version}'
        )
    commit = commit_of(root)
    if commit is None:
        raise PackError(f'{root} cannot be packed: it is not the top of a git checkout with a commit')
    with writing(folder), new_folder(folder) as made:
        for name in _tracked(root):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, made / name)
        (made / COMMIT_FILE).write_text(f'{commit}\n')
        (made / 'plan.yaml').write_text(text)
        if packages:
            _fetch_wheels(made / 'wheels', root / 'constraints.txt', packages, version)
        for source in _PACKED:
            _pack_images(source, [recipe for recipe in recipes if _source(recipe) == source], made / 'data')
        for place, here in teachers.items():
            shutil.copytree(here, made / place)
        command = _command((made / 'data').is_dir(), bool(packages))
        same = f'--set {shlex.join(changes)} ' if changes else ''
        if plan.output != load_plan(file).output:
            same = f'--output {shlex.quote(str(plan.output))} {same}'
        readme = _README.format(title=f'Packed: {file.stem}', commit=commit, command=command, same=same)
        (made / 'README.md').write_text(readme)
        sizes = {part: _bytes(made / part) for part in ('data', 'wheels')}
        return {'code': _bytes(made) - sum(sizes.values()), **sizes}


def _git(root: Path, *options: str) -> list[str]:
    try:
        listed = subprocess.run(
            ['git', '-C', str(root), 'ls-files', '-z', *options, '--', *_CODE],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        raise PackError(f'{root} cannot be packed: it is not a checkout that git knows') from error
    return [name for name in listed.stdout.split('\0') if name and not name.startswith(_LEFT_OUT)]


def _tracked(root: Path) -> list[str]:
    return [name for name in _git(root) if (root / name).is_file()]


def _plan_there(root: Path, plan: Plan, file: Path, jobs: Sequence[Job], changes: Sequence[str]) -> str:
    """Return the plan of these trainings, with recipes relative to the checkout, as YAML."""
    tracked = set(_tracked(root))
    runs = {}
    for name in dict.fromkeys(job.name for job in jobs):
        planned = plan.runs[name]
        recipe = (file.parent / planned.recipe).resolve()
        for part in with_bases(recipe):
            if not part.is_relative_to(root) or str(part.relative_to(root)) not in tracked:
                which = file.parent / planned.recipe if part == recipe else f'{part}, from which {recipe} starts,'
                raise PackError(
                    f'the recipe {which} cannot be packed: only those that git tracks under {root}/recipes can'
                )
        runs[name] = {'recipe': str(recipe.relative_to(root)), 'overrides': [*planned.overrides, *changes]}
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    output = str(Path('runs', plan.output.name))
    return yaml.safe_dump({'output': output, 'seeds': seeds, 'runs': runs}, sort_keys=False, width=120)


def _teacher_folders(recipes: Sequence[Recipe]) -> dict[Path, Path]:
    """Return the folders of the networks that teach the recipes', by their places in the pack.

    Raises:
        PackError: if one cannot be packed.
    """
    folders = {}
    for name in {teacher for recipe in recipes for teacher in teachers_of(recipe)}:
        kind, _, text = name.partition(':')
        place, entry = Path(text), entry_of(name)
        if entry is not None and entry.folder is not None:
            folders[Path('ltzoo', 'models', 'weights', entry.folder.name)] = entry.folder
        elif kind != 'local-dir' or place.is_absolute() or '..' in place.parts:
            raise PackError(
                f'the teacher {name} cannot be packed: one of the zoo that has weights can, and one in a folder below '
                'this one, local-dir:FOLDER; choose other runs with --only'
            )
        elif not place.is_dir():
            raise PackError(f'the teacher {name} cannot be packed: it is not there; train it first')
        else:
            folders[place] = place
    return folders


def _source(recipe: Recipe) -> str | None:
    return source_of(recipe.data.name)


def _pack_images(source: str, recipes: Sequence[Recipe], folder: Path) -> None:
    """Pack the images that the recipes train on and measure on, as `fit` itself chooses them."""
    # Seeds and settings of the training do not change which images it uses.
    distinct = {
        (recipe.data, recipe.evaluation.split, recipe.evaluation.holdout_per_class): recipe for recipe in recipes
    }
    if not distinct:
        return
    wanted: set[bytes] = set()
    for recipe in distinct.values():
        dataset = prepare_data(recipe)
        held_out = (dataset.test,) if recipe.evaluation.split == 'holdout' else ()
        wanted.update(pixels.tobytes() for part in (dataset.train, *held_out) for pixels in part.images.array)  # type: ignore[attr-defined]
    whole = load_data(source, recipes[0].data.data_dir)
    train = np.flatnonzero([pixels.tobytes() in wanted for pixels in whole.train.images.array])  # type: ignore[attr-defined]
    tested = any(recipe.evaluation.split == 'test' for recipe in recipes)
    holds = sorted(
        {recipe.data.name + ' with its hold-out' * (recipe.evaluation.split == 'holdout') for recipe in recipes}
    )
    folder.mkdir(exist_ok=True)
    write_packed(pack_file(folder, source), whole, train, np.arange(len(whole.test) if tested else 0), ', '.join(holds))


def _name(package: str) -> str:
    return re.split(r'[^\w.-]', package)[0].lower()


def _fetch_wheels(folder: Path, constraints: Path, packages: Sequence[str], version: str) -> None:
    alone = [package for package in packages if _name(package) in _ON_PYTORCH]
    whole = [package for package in packages if package not in alone]
    for names, options in ((alone, ['--no-deps']), (whole, [])):
        if not names:
            continue
        done = subprocess.run(
            [
                sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--dest',
                str(folder), '--constraint', str(constraints), '--only-binary=:all:', '--implementation', 'cp',
                '--python-version', version, *(f'--platform={platform}' for platform in _PLATFORMS), *options, '--',
                *names,
            ],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            said = [line.removeprefix('ERROR: ') for line in done.stderr.splitlines() if line.startswith('ERROR')]
            raise PackError(
                f'--with {" ".join(names)}: pip has no wheels for Python {version} on Linux: '
                f'{"; ".join(said) or done.stderr.strip()[-300:]}'
            )


def _command(data: bool, wheels: bool) -> str:
    train = f'python3 tools/reproduce.py plan.yaml{" --data-dir data" if data else ""} --jobs 4'
    if not wheels:
        return f'PYTHONPATH=. {train}'
    install = 'python3 -m pip install --quiet --no-index --no-deps --upgrade --target site wheels/*.whl'
    return f'{install} && PYTHONPATH=.:site {train}'


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
