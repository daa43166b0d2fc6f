"""Convert another project's checkpoint into a model folder.

python tools/convert.py FILE --from FAMILY --to DIR [--data NAME [--data-dir DIR]] [--num-classes N]
                        [--arch NAME] [--tau TAU]

FAMILY is the project whose code wrote FILE: bcl, paco, gpaco, ride, sade, mislas, ldam, crt, tau_norm, lws, gkpgsa, or
timm (any of timm's models, or ltzoo's; --arch says which).
`ltzoo.create_model('local-dir:DIR', pretrained=True)` loads the folder.
Every tensor of FILE is placed or left out by a rule that is printed; anything else is an error.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ltzoo.command_line import command_line, file_name
from ltzoo.errors import LtzooError, first_of


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', type=file_name, metavar='FILE', help='.safetensors, or what torch.save wrote')
    parser.add_argument('--from', dest='family', required=True, metavar='FAMILY', help='the project that wrote it')
    parser.add_argument('--to', type=file_name, required=True, metavar='DIR', help='the folder to make')
    parser.add_argument('--data', metavar='NAME', help='the data set it was trained on, such as cifar100_lt_r100')
    parser.add_argument(
        '--data-dir', help='where its files are (default: $LTZOO_DATA, else data); needed by mislas, except on CIFAR'
    )
    parser.add_argument('--num-classes', type=int, metavar='N', help='checked against FILE')
    parser.add_argument('--arch', metavar='NAME', help='needed by timm; checked against FILE for the others')
    parser.add_argument(
        '--tau',
        type=float,
        help='needed by tau_norm: exponent of the norms of the class weights (0: unchanged, 1: all equal)',
    )
    parser.add_argument(
        '--unsafe-pickle', action='store_true', help='load FILE even if that may run code of whoever made it'
    )
    parser.add_argument('--force', action='store_true', help='replace what is in DIR')
    args = parser.parse_args()
    convert(args)
    return 0


def convert(args: argparse.Namespace) -> None:
    from ltzoo.data import MissingDataError, load_data
    from ltzoo.hub.converted import export_converted, images_of
    from ltzoo.hub.export import check_new_folder
    from ltzoo.models import checkpoints

    check_new_folder(args.to, args.force)
    if Path(os.path.realpath(args.file)).is_relative_to(os.path.realpath(args.to)):
        raise LtzooError(f'{args.to} holds {args.file} itself, which would be replaced; give a new folder')
    if args.data_dir and not args.data:
        raise LtzooError('--data-dir goes with --data')
    class_counts = None
    place = (args.data or '').partition(':')[2]
    # What is on the Hub is not fetched for this.
    if args.data and (args.data_dir or not place or Path(os.path.expanduser(place)).exists()):
        try:
            class_counts = load_data(args.data, args.data_dir).class_counts.tolist()
        except MissingDataError:
            # The data need not be here, unless it was said where; where they are, the file is checked against them.
            if args.data_dir:
                raise
    converted = checkpoints.convert(
        args.file,
        args.family,
        arch=args.arch,
        num_classes=args.num_classes,
        tau=args.tau,
        class_counts=class_counts,
        unsafe_pickle=args.unsafe_pickle,
    )
    images = images_of(converted, args.data)
    export_converted(converted, args.to, data=args.data, force=args.force)
    network = converted.network
    settings = ', '.join(f'{key} {value}' for key, value in network.arguments.items())
    print(f'{args.to}: {network.model.removeprefix("timm/")}, {settings}; {converted.placed} tensors')
    for why, names in converted.dropped.items():
        print(f'left out: {first_of(names)}: {why}')
    if converted.added:
        print(f'not in the file, set to 0: {first_of(converted.added)}')
    if network.by_frequency:
        print(f'classes: numbered as {args.data} numbers them, no longer by frequency')
    if converted.unused:
        print(f'not weights: {", ".join(converted.unused)}')
    mean, std = (', '.join(f'{value:g}' for value in images[key]) for key in ('mean', 'std'))
    print(f'images: {"x".join(map(str, images["input_size"][1:]))}, mean {mean}, std {std}')
    print(f"ltzoo.create_model('local-dir:{args.to}', pretrained=True) loads it")
    print(f'python tools/evaluate.py local-dir:{args.to} --data {args.data or "DATA"} scores it')


if __name__ == '__main__':
    sys.exit(main())
