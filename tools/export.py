"""Export finished runs: a folder that can be loaded, checked and published.

python tools/export.py RUN [RUN ...] --to DIR

Several runs are the seeds of one recipe: DIR gets the first one's model and the scores of all.
`ltzoo.create_model('local-dir:DIR', pretrained=True)` loads it; tools/publish.py puts it on the Hub.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ltzoo.errors import LtzooError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN', help='a run folder')
    parser.add_argument('--to', type=Path, required=True, metavar='DIR', help='the folder to make')
    parser.add_argument('--force', action='store_true', help='replace what is in DIR')
    args = parser.parse_args()
    try:
        export(args.runs, args.to, args.force)
    except LtzooError as error:
        print(f'export.py: {error}', file=sys.stderr)
        return 2
    return 0


def export(runs: list[Path], folder: Path, force: bool) -> None:
    from ltzoo.hub import release

    results = release(runs, folder, force=force)
    top1 = results['scores']['top1']
    spread = '' if top1['std'] is None else f' ± {top1["std"]:.2f}'
    print(f'{folder}: seeds {", ".join(map(str, results["seeds"]))}, top-1 {top1["mean"]:.2f}{spread}')
    print(f"ltzoo.create_model('local-dir:{folder}', pretrained=True) loads it")


if __name__ == '__main__':
    sys.exit(main())
