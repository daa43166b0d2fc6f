"""Measure speed and memory, as docs/speed.md and docs/large.md report them; with zoo, scores of many models too.

python tools/benchmark.py views [--data cifar100_lt_r100] [--data-dir DIR] [--json FILE]
python tools/benchmark.py step  [--recipe recipes/cifar100_lt_r100/bcl.yaml] [--json FILE]
python tools/benchmark.py epoch [--recipe recipes/cifar100_lt_r100/bcl.yaml] [--json FILE]
python tools/benchmark.py recipe recipes/imagenet_lt/gkpgsa_resnet50.yaml [--steps 200] [--gpus 1 4 8] [--json FILE]
python tools/benchmark.py bank  [--model timm/resnet50] [--classes 8142] [--epochs 100] [--json FILE]
python tools/benchmark.py load  [--model timm/resnet50] [--json FILE]
python tools/benchmark.py zoo   --models 'resnet32*' local-dir:DIR ... --data cifar100_lt_r100 ... --output DIR

What each measures: python tools/benchmark.py COMMAND --help.
"""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks import bank, epoch, load, recipe, step, views, zoo

from ltzoo.command_line import at_least, command_line, file_name
from ltzoo.files import check_target, write_atomically, writing

COMMANDS = {
    'views': (views, 'data augmentation'),
    'step': (step, 'training step'),
    'epoch': (epoch, 'knowledge preservation in a step and at the end of an epoch'),
    'recipe': (recipe, 'a large recipe: images/s, memory, loader, hours'),
    'bank': (bank, 'memory bank'),
    'load': (load, 'importing and loading'),
    'zoo': (zoo, 'many models on many data sets'),
}
# Options of any command that count something.
COUNTS = ('rounds', 'threads', 'classes', 'epochs', 'batch_size', 'steps', 'loader_seconds', 'gpus', 'groups')


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_options(command)
        command.add_argument('--threads', type=int, help="CPU threads (default: views 1, else PyTorch's)")
        if name != 'zoo':
            command.add_argument('--json', type=file_name, help='write all numbers to this file, as JSON')
    args = parser.parse_args()
    for name in COUNTS:
        value = getattr(args, name, None)
        value = min(value) if isinstance(value, list) else value
        if value is not None:
            at_least(f'--{name.replace("_", "-")}', value, 1)
    if args.command == 'zoo':
        return zoo.bench(args)
    if args.json:
        check_target(args.json)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    module, _ = COMMANDS[args.command]
    results = module.bench(args)
    if args.json:
        with writing(args.json):
            write_atomically(args.json, json.dumps(results, indent=2) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
