"""Export finished runs: a folder that can be loaded, checked and published.

python tools/export.py RUN [RUN ...] --to DIR
python tools/export.py MODEL --to FILE.onnx|FILE.pt2 [--adjust-logits 1 | --tau-normalize 1]

Several runs are the seeds of one recipe: DIR gets the first one's model and the scores of all. The first RUN may be a
folder made before, to which the others add their seeds: python tools/export.py DIR RUN --to DIR --force
`ltzoo.create_model('local-dir:DIR', pretrained=True)` loads it; tools/publish.py puts it on the Hub.
FILE is for use without ltzoo, by ONNX Runtime or torch.export.load; MODEL is a run or any name of a model with weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ltzoo.command_line import add_correction, command_line, file_name
from ltzoo.errors import LtzooError


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='a run folder; for a FILE also the name of a model')
    parser.add_argument(
        '--to', type=file_name, required=True, metavar='DIR', help='the folder, or .onnx or .pt2 file, to make'
    )
    add_correction(parser, of='of a FILE: ')
    parser.add_argument('--force', action='store_true', help='replace what is there')
    args = parser.parse_args()
    ending = args.to.suffix
    if ending in ('.onnx', '.pt2'):
        export_file(args.runs, args.to, args.force, tau=args.adjust_logits, tau_norm=args.tau_normalize)
    elif ending.lower().startswith(('.onnx', '.pt', '.safetensors')):
        raise LtzooError(f'{args.to} ends in {args.to.suffix}: take .onnx or .pt2, or the name of a folder')
    elif args.adjust_logits is not None or args.tau_normalize is not None:
        raise LtzooError(
            f'{args.to} is a folder, with the scores of the trained weights, which those of a corrected classifier are '
            'not: give FILE.onnx or FILE.pt2'
        )
    else:
        export([Path(run) for run in args.runs], args.to, args.force)
    return 0


def export_file(
    models: list[str], file: Path, force: bool, *, tau: float | None = None, tau_norm: float | None = None
) -> None:
    import ltzoo
    from ltzoo.evaluation import resolve_model
    from ltzoo.evaluation.adjust import correct
    from ltzoo.evaluation.trained_on import TrainedOn
    from ltzoo.hub import deploy

    if len(models) > 1:
        raise LtzooError(f'{file} takes one model, not {len(models)}')
    if file.exists() and not force:
        raise LtzooError(f'{file} exists already; give another name, or --force')
    model = ltzoo.create_model(resolve_model(models[0]), pretrained=True)
    correct(model, TrainedOn(models[0]), tau=tau, tau_norm=tau_norm)
    difference = deploy(model, file)
    print(f"{file}: logits equal the model's, to {difference:.1e} of the largest")


def export(runs: list[Path], folder: Path, force: bool) -> None:
    from ltzoo.hub import release

    for run in runs:
        if not run.is_dir():
            raise LtzooError(
                f'there is no run folder {run}; a model that is given by its name becomes FILE.onnx or FILE.pt2, '
                f'not {folder}'
            )
    results = release(runs, folder, force=force)
    top1 = results['scores']['top1']
    spread = '' if top1['std'] is None else f' ± {top1["std"]:.2f}'
    seeds = results['seeds']
    print(f'{folder}: seed{"s" * (len(seeds) > 1)} {", ".join(map(str, seeds))}, top-1 {top1["mean"]:.2f}{spread} %')
    print(f"ltzoo.create_model('local-dir:{folder}', pretrained=True) loads it")


if __name__ == '__main__':
    sys.exit(main())
