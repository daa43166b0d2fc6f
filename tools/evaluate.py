"""Evaluate a model on long-tailed data.

python tools/evaluate.py MODEL --data cifar100_lt_r100 [--data-dir DIR] [--json FILE] [--csv FILE] [--plot FILE]
                         [--predictions FILE]

MODEL is a zoo name, timm/NAME, hf-hub:ORG/NAME[@REVISION], local-dir:PATH, or the folder of a run.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ltzoo.command_line import add_correction, at_least, check_outputs, command_line, file_name, naming_options


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', metavar='MODEL')
    parser.add_argument(
        '--data',
        help='name of the data set, such as cifar100_lt_r100 (default: what a model of the zoo was trained on)',
    )
    parser.add_argument(
        '--data-dir',
        help='where its files are (default: $LTZOO_DATA, else data); beside csv:FILE, where its relative paths start',
    )
    parser.add_argument(
        '--split',
        choices=['test', 'holdout', 'all'],
        default='test',
        help='which images: test, the test set (default); holdout, what a run with evaluation.split=holdout was '
        'measured on; all, every image of the data set; the model must not have been trained on any of them',
    )
    parser.add_argument('--json', type=file_name, help='write all scores to this file')
    parser.add_argument('--csv', type=file_name, help='write the table of classes to this file')
    parser.add_argument(
        '--plot',
        type=file_name,
        help="plot each class's accuracy against its number of training images (.png, .pdf or .svg)",
    )
    parser.add_argument(
        '--predictions',
        type=file_name,
        help='write path, label, prediction and confidence of each image to this file, as CSV',
    )
    add_correction(parser)
    parser.add_argument('--shifted', action='store_true', help='also score long-tailed test distributions')
    parser.add_argument(
        '--many-above', type=int, help="Many-shot: more training images than this (default: the model's own, else 100)"
    )
    parser.add_argument(
        '--few-below', type=int, help="Few-shot: fewer training images than this (default: the model's own, else 20)"
    )
    parser.add_argument('--batch-size', type=int, default=256, help='images in one batch (default: 256)')
    parser.add_argument('--workers', type=int, default=2, help='processes that read image files (default: 2)')
    parser.add_argument('--skip-unreadable', action='store_true', help='leave out images that cannot be decoded')
    parser.add_argument('--device', help='cpu, cuda, mps (default: cuda where there is one, else cpu)')
    args = parser.parse_args()
    check_options(args)
    write(args, evaluate(args))
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse, before anything is computed, what could only fail afterwards."""
    from ltzoo.data import check_thresholds

    at_least('--batch-size', args.batch_size, 1)
    at_least('--workers', args.workers, 0)
    if args.many_above is not None and args.few_below is not None:
        check_thresholds(args.many_above, args.few_below, ('--many-above', '--few-below'))
    tables = {'--json': args.json, '--csv': args.csv, '--predictions': args.predictions}
    check_outputs(tables, figures={'--plot': args.plot})


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from ltzoo.evaluation import evaluate_model

    with naming_options(args.batch_size):
        return evaluate_model(
            args.model,
            args.data,
            data_dir=args.data_dir,
            split=args.split,
            batch_size=args.batch_size,
            device=args.device,
            workers=args.workers,
            many_above=args.many_above,
            few_below=args.few_below,
            shifted=args.shifted,
            skip_unreadable=args.skip_unreadable,
            tau=args.adjust_logits,
            tau_norm=args.tau_normalize,
            predictions=args.predictions is not None,
        )


def write(args: argparse.Namespace, results: dict[str, Any]) -> None:
    from ltzoo.evaluation import format_scores, per_class_csv, plot_accuracy, predictions_csv
    from ltzoo.files import write_atomically, writing

    predictions = results.pop('predictions', [])
    print(format_scores(results))
    if args.json:
        with writing(args.json):
            write_atomically(args.json, json.dumps(results, indent=2) + '\n')
    if args.csv:
        with writing(args.csv):
            write_atomically(args.csv, per_class_csv(results))
    if args.plot:
        with writing(args.plot):
            plot_accuracy(results, args.plot)
    if args.predictions:
        with writing(args.predictions):
            write_atomically(args.predictions, predictions_csv(predictions))


if __name__ == '__main__':
    sys.exit(main())
