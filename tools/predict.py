"""Classify images that have no labels.

python tools/predict.py MODEL IMAGE_OR_FOLDER ... [--top 3] [--csv FILE] [--adjust-logits 1 | --tau-normalize 1]

MODEL is a zoo name, timm/NAME, hf-hub:ORG/NAME[@REVISION], local-dir:PATH, or the folder of a run. Folders are searched
for images, with their sub-folders. The table has a line for each image: its path, and its likeliest classes with their
probabilities. Those of a network trained with balanced softmax, BCL, LDAM-DRW, RIDE, cRT or LWS are for classes that
are equally frequent, and with --adjust-logits 1 or --tau-normalize 1 those of plain cross-entropy.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from pathlib import Path
from typing import Any

from ltzoo.command_line import add_correction, at_least, command_line, file_name, naming_options
from ltzoo.errors import LtzooError


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', metavar='MODEL')
    parser.add_argument('images', nargs='+', type=file_name, metavar='IMAGE_OR_FOLDER')
    parser.add_argument(
        '--top', type=int, default=1, help='how many of the likeliest classes to give for each image (default: 1)'
    )
    parser.add_argument('--csv', type=file_name, metavar='FILE', help='write the table to this file, not to the screen')
    add_correction(parser)
    parser.add_argument('--batch-size', type=int, default=256, help='images in one batch (default: 256)')
    parser.add_argument('--workers', type=int, default=2, help='processes that read image files (default: 2)')
    parser.add_argument('--skip-unreadable', action='store_true', help='leave out images that cannot be decoded')
    parser.add_argument('--device', help='cpu, cuda, mps (default: cuda where there is one, else cpu)')
    args = parser.parse_args()
    at_least('--top', args.top, 1)
    at_least('--batch-size', args.batch_size, 1)
    at_least('--workers', args.workers, 0)

    import ltzoo
    from ltzoo.evaluation import predict_files, resolve_model
    from ltzoo.evaluation.adjust import correct
    from ltzoo.evaluation.evaluate import usable_device
    from ltzoo.evaluation.trained_on import TrainedOn
    from ltzoo.files import check_target, write_atomically, writing

    if args.csv:
        check_target(args.csv)
    files = find_images(args.images)
    device = usable_device(args.device)
    with naming_options(args.batch_size):
        model: Any = ltzoo.create_model(resolve_model(args.model), pretrained=True).to(device)
        if not model.num_classes:
            raise LtzooError(f'{args.model} has no classifier: train one on it, or take a model with one')
        correct(model, TrainedOn(args.model), tau=args.adjust_logits, tau_norm=args.tau_normalize)
        if args.skip_unreadable:
            files = readable(files)
        classes, probabilities = predict_files(
            model, files, top=args.top, batch_size=args.batch_size, device=device, workers=args.workers
        )
    names = (model.pretrained_cfg or {}).get('label_names')
    names = names if isinstance(names, (list, tuple)) and len(names) == model.num_classes else range(model.num_classes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    ranks = ['', *(f'_{rank}' for rank in range(2, classes.shape[1] + 1))]
    writer.writerow(['path', *(f'{column}{rank}' for rank in ranks for column in ('class', 'probability'))])
    for file, found, sure in zip(files, classes, probabilities, strict=True):
        writer.writerow([file, *(x for c, p in zip(found, sure, strict=True) for x in (names[c], f'{p:.4f}'))])
    if args.csv:
        with writing(args.csv):
            write_atomically(args.csv, text.getvalue())
    else:
        print(text.getvalue(), end='')
    return 0


def find_images(places: list[Path]) -> list[Path]:
    """Return the files given, and those of folders that have an image's ending, in the order of their names.

    Raises:
        LtzooError: if a place does not exist, or a folder has no images.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    from ltzoo.data.sources.folder import images_below, warn_of_others

    files: list[Path] = []
    for place in places:
        if not os.path.exists(place):
            raise LtzooError(f'there is no image or folder {place}')
        found = [place]
        if place.is_dir():
            found, others = images_below(place)
            warn_of_others(place, others)
            if not found:
                raise LtzooError(f'{place} holds no images: their names end in {", ".join(IMG_EXTENSIONS)}')
        files += found
    return files


def readable(files: list[Path]) -> list[Path]:
    """Return the images that can be decoded; the others are logged."""
    import numpy as np

    from ltzoo.data import FileImages, Split, drop_unreadable

    split = Split(FileImages(Path(), [str(file) for file in files]), np.arange(len(files)))
    return [files[i] for i in drop_unreadable(split).labels]


if __name__ == '__main__':
    sys.exit(main())
