"""Publish a model folder on the Hub.

python tools/publish.py DIR --to ORG/NAME [--private] [--revision BRANCH] [--force] [--dry-run]

DIR is what tools/export.py makes. It is loaded and checked against its results and stored logits; then all its files go
into one commit. Log in with `hf auth login`, or set HF_TOKEN.
"""

from __future__ import annotations

import argparse
import sys

from ltzoo.command_line import command_line, file_name


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=file_name, metavar='DIR', help='model folder made by tools/export.py')
    parser.add_argument('--to', required=True, metavar='ORG/NAME', help='the repository; it is made if there is none')
    parser.add_argument('--private', action='store_true', help='make a private repository')
    parser.add_argument('--revision', default='main', metavar='BRANCH', help='branch to commit to (default: main)')
    parser.add_argument('--force', action='store_true', help='replace a different model')
    parser.add_argument('--dry-run', action='store_true', help='check everything and change nothing')
    args = parser.parse_args()
    print(publish(args))
    return 0


def publish(args: argparse.Namespace) -> str:
    from ltzoo.hub import publish

    done = publish(
        args.folder,
        args.to,
        force=args.force,
        private=args.private,
        revision=args.revision,
        dry_run=args.dry_run,
    )
    if not done.files and not done.removed:
        return f'{done.name} holds all of it already; nothing was committed'
    if args.dry_run:
        removed = f'; would be removed: {", ".join(done.removed)}' if done.removed else ''
        return f'would be committed to {args.to}: {", ".join(done.files)}{removed}'
    return f'{done.url}\nltzoo.create_model({done.name!r}, pretrained=True) loads it'


if __name__ == '__main__':
    sys.exit(main())
