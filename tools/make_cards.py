"""Make the cards of the zoo's models from what is known of them.

python tools/make_cards.py [--to hub_cards] [--check]

Every model gets a folder named as on the Hub. Where weights are published the card is made from their config.json and
results.json; where not, it says so and gives the recipe. --check only says whether the cards are up to date.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

from ltzoo.command_line import command_line, file_name
from ltzoo.errors import LtzooError

ROOT = Path(__file__).resolve().parents[1]


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--to', type=file_name, default=ROOT / 'hub_cards', metavar='DIR', help='where the cards are')
    parser.add_argument('--check', action='store_true', help='write nothing; fail if a card is not what it would be')
    args = parser.parse_args()
    if args.check:
        check(args.to)
    else:
        make(args.to)
    return 0


def make(folder: Path) -> None:
    from ltzoo.files import new_folder, writing

    check_folder(folder)
    with writing(folder), new_folder(folder) as made:
        count = write_cards(made)
    print(f'{folder}: {count} cards')


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but cards: all in it is replaced."""
    from ltzoo.models.lt_zoo import ZOO

    if folder.exists() and not folder.is_dir():
        raise LtzooError(f'{folder} is a file; cards need a folder')
    cards = {entry.hub_id.partition('/')[2] for entry in ZOO.values()}
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        if place.name not in cards or (place / 'config.json').exists():
            raise LtzooError(f'{folder} holds {place.name}, which is no card; move it away, or give another folder')


def write_cards(folder: Path) -> int:
    """Write the card of every model of the zoo's table, and return how many there are."""
    from ltzoo.hub import planned_card
    from ltzoo.hub.release import write_card
    from ltzoo.models.entries import paper_results
    from ltzoo.models.lt_zoo import ZOO

    for name, entry in ZOO.items():
        place = folder / entry.hub_id.partition('/')[2]
        place.mkdir()
        if entry.folder is None:
            (place / 'README.md').write_text(planned_card(entry, paper_results(name)), encoding='utf-8')
        else:
            write_card(entry.folder, place)
    return len(ZOO)


def check(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        write_cards(made)
        stale = {
            str(file.relative_to(top))
            for top, other in ((made, folder), (folder, made))
            for file in top.rglob('*')
            if file.is_file() and not _same(file, other / file.relative_to(top))
        }
    if stale:
        raise LtzooError(
            f'{folder} is not up to date ({sorted(stale)[0]}): run python tools/make_cards.py --to {folder}'
        )
    print(f'{folder} is up to date')


def _same(file: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(file, other, shallow=False)


if __name__ == '__main__':
    sys.exit(main())
