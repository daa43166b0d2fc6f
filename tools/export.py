"""Export the model of a finished run.

python tools/export.py RUN --to DIR

DIR gets model.safetensors, config.json and README.md: `ltzoo.create_model('local-dir:DIR', pretrained=True)`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ltzoo.errors import LtzooError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, metavar='RUN', help='a run folder')
    parser.add_argument('--to', type=Path, required=True, metavar='DIR', help='the folder to make')
    parser.add_argument('--force', action='store_true', help='replace what is in DIR')
    args = parser.parse_args()
    try:
        export(args.run, args.to, args.force)
    except LtzooError as error:
        print(f'export.py: {error}', file=sys.stderr)
        return 2
    return 0


def export(run: Path, folder: Path, force: bool) -> None:
    import ltzoo
    from ltzoo.hub import copy_export

    if not (run / 'recipe.yaml').is_file():
        raise LtzooError(f'{run} holds no run: recipe.yaml is missing')
    if not (run / 'results.json').is_file():
        raise LtzooError(f'the run {run} is not finished: continue it with resume=auto')
    model = ltzoo.create_model(f'local-dir:{run / "model"}', pretrained=True)
    copy_export(run / 'model', folder, force=force)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{folder}: {parameters:,} parameters; ltzoo.create_model('local-dir:{folder}', pretrained=True) loads it")


if __name__ == '__main__':
    sys.exit(main())
