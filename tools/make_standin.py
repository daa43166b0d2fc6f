"""Make a stand-in for ImageNet-LT, iNaturalist 2018 or Places-LT, to try a recipe before fetching 100 GB of images.

python tools/make_standin.py imagenet_lt DIR
python tools/make_standin.py inat18 DIR --classes 100 --share 0.05     # a small one, to try a whole run
accelerate launch recipes/train.py recipes/imagenet_lt/bcl_resnet50.yaml data.data_dir=DIR output=runs/try

Folders and lists are laid out as the real ones are, with made-up names, or are real ones (--lists). Extremes, total and
shots of the class counts are the real ones'; all images have the size that is usual there (or --size). The images are
noise, one hundred of them under all the names (hard links): whatever is measured on them means nothing.
"""

from __future__ import annotations

import argparse
import sys

from ltzoo.command_line import command_line, file_name
from ltzoo.data.standin import STANDINS, make_standin
from ltzoo.errors import LtzooError


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=STANDINS, help='data set to stand in for')
    parser.add_argument('folder', type=file_name, metavar='DIR', help='new or empty; what data.data_dir is to be')
    parser.add_argument('--classes', type=int, metavar='N', help='keep N classes, from the largest to the smallest')
    parser.add_argument(
        '--share',
        type=float,
        metavar='X',
        help='keep this share of the images of every class, above 0 and up to 1 (default: 1)',
    )
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('W', 'H'), help="pixels, if not the real ones' usual size"
    )
    parser.add_argument(
        '--lists', type=file_name, metavar='DIR', help='folder with official lists; those missing there are made up'
    )
    args = parser.parse_args()
    try:
        numbers = make_standin(
            args.name,
            args.folder,
            classes=args.classes,
            share=args.share,
            size=args.size and tuple(args.size),
            lists=args.lists,
        )
    except OSError as error:
        if isinstance(error, LtzooError):
            raise
        raise LtzooError(f'{args.folder} cannot be made: {error}') from error
    for file, number in numbers.items():
        print(f'{args.folder / file}: {number:,} images')
    print('the images are noise: numbers measured on them mean nothing')
    print(f'use it with data.data_dir={args.folder}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
