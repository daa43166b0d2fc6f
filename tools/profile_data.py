"""Describe a data set: class counts, imbalance ratio, Gini coefficient, shots, and what is wrong with its images.

python tools/profile_data.py SOURCE [--data-dir DIR] [--plot tail.png] [--json profile.json]

SOURCE is a name that `ltzoo.data.load_data` takes: digits_lt, cifar100_lt_r100, folder:/my/images, csv:/my/list.csv ...
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from ltzoo.command_line import check_outputs, command_line, file_name
from ltzoo.data import Profile, check_thresholds, load_data, plot_profile, profile_data
from ltzoo.files import write_atomically, writing

# Sets with more classes than this show only their largest and smallest classes; --json has them all.
ALL_CLASSES = 20
SHOWN_AT_EACH_END = 5


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='name of the data set')
    parser.add_argument('--data-dir', metavar='DIR', help='where it lies; by default $LTZOO_DATA, else data')
    parser.add_argument('--download', action='store_true', help='fetch missing official files where the source can')
    parser.add_argument(
        '--json', type=file_name, metavar='FILE', help='write everything, every class included, as JSON'
    )
    parser.add_argument('--plot', type=file_name, metavar='FILE', help='draw the tail (.png, .pdf or .svg)')
    parser.add_argument(
        '--many-above',
        type=int,
        default=100,
        metavar='N',
        help='Many-shot: classes with more than N training images (default: 100)',
    )
    parser.add_argument(
        '--few-below',
        type=int,
        default=20,
        metavar='N',
        help='Few-shot: classes with fewer than N training images (default: 20)',
    )
    parser.add_argument(
        '--skip-images', action='store_true', help='do not decode the images to find unreadable and duplicate ones'
    )
    args = parser.parse_args()
    check_thresholds(args.many_above, args.few_below, ('--many-above', '--few-below'))
    check_outputs({'--json': args.json}, figures={'--plot': args.plot})
    dataset = load_data(args.source, args.data_dir, download=args.download)
    profile = profile_data(
        dataset, many_above=args.many_above, few_below=args.few_below, check_images=not args.skip_images
    )
    print(format_profile(profile))
    if args.json:
        with writing(args.json):
            write_atomically(args.json, json.dumps(profile.to_json(), indent=1) + '\n')
    if args.plot:
        with writing(args.plot):
            plot_profile(profile, args.plot)
    return 0


def format_profile(profile: Profile) -> str:
    """Return the profile as text."""
    counts, tests = profile.train_counts, profile.test_counts
    lines = [
        f'{profile.data}: {len(counts):,} classes, {counts.sum():,} training and {tests.sum():,} test images',
        f'imbalance ratio {profile.imbalance_ratio:,.4g} (largest class {counts.max():,}, smallest '
        f'{counts[counts > 0].min():,}), mean {counts.mean():,.1f}, median {np.median(counts):,.1f}, '
        f'Gini {profile.gini:.3f}',
        '',
        f'{"shot":<8}{"images a class":<16}{"classes":>8}{"images":>10}{"share":>8}',
    ]
    ranges = {
        'many': f'> {profile.many_above}',
        'medium': f'{profile.few_below} to {profile.many_above}',
        'few': f'< {profile.few_below}',
    }
    for shot, classes in profile.shots.items():
        images = counts[classes].sum()
        values = f'{len(classes):>8,}{images:>10,}{images / counts.sum():>8.1%}' if len(classes) else f'{"none":>8}'
        lines.append(f'{shot.capitalize():<8}{ranges[shot]:<16}{values}')
    order = np.argsort(-counts, kind='stable')
    width = min(32, max(len(name) for name in profile.class_names)) + 2
    lines += ['', f'{"class":<7}{"name":<{width}}{"train":>8}{"test":>8}']
    for rank, c in enumerate(order):
        if len(order) <= ALL_CLASSES or not SHOWN_AT_EACH_END <= rank < len(order) - SHOWN_AT_EACH_END:
            lines.append(f'{c:<7}{profile.class_names[c][:32]:<{width}}{counts[c]:>8,}{tests[c]:>8,}')
        elif rank == SHOWN_AT_EACH_END:
            lines.append(f'... {len(order) - 2 * SHOWN_AT_EACH_END:,} classes between them')
    lines += ['', *(f'warning: {warning}' for warning in profile.warnings)]
    if not profile.warnings:
        lines.append('no warnings' + ('' if profile.check else '; images were not checked (--skip-images)'))
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
