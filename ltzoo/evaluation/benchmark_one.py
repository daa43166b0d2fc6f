"""One model on one data set: its scores, its size and its speed, measured in a process of its own.

python -m ltzoo.evaluation.benchmark_one MODEL DATA OUT.json [options]

The process ends with code 0 and a row in OUT.json; with OUT_OF_MEMORY where a smaller batch may help; with a reason in
OUT.json and UNFIT where model and data do not go together, or FAILED where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_input_data_config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ltzoo.command_line import import_named
from ltzoo.data import load_data
from ltzoo.errors import LtzooError, is_out_of_memory
from ltzoo.evaluation.evaluate import (
    ClassesError,
    check_classes,
    score_model,
    usable_device,
)
from ltzoo.evaluation.metrics import SCORES
from ltzoo.evaluation.trained_on import TrainedOn, resolve_model
from ltzoo.files import write_atomically
from ltzoo.models import create_model

__all__ = ['FAILED', 'OUT_OF_MEMORY', 'UNFIT', 'macs', 'measure']

OUT_OF_MEMORY, UNFIT, FAILED = 86, 87, 88
_TIMED_BATCHES = 5


def measure(
    name: str, data: str, *, data_dir: str | None = None, batch_size: int = 256, device: str | None = None
) -> dict[str, Any]:
    """Score a model and measure what it costs.

    Returns:
        The scores in percent; `parameters`; `gmacs`, 10^9 multiply-adds for one image; `images_per_second` of batches
        that lie on the device, in PyTorch's own arithmetic, median of 5; `memory_mb`, in 10^6 bytes, the most the
        process (CPU) or the device held; `batch_size`, `device`, `threads`, `torch`.

    Raises:
        LtzooError: as `evaluate_model`.
    """
    where = usable_device(device)
    model = create_model(resolve_model(name), pretrained=True).to(where).eval()
    dataset = load_data(data, data_dir)
    check_classes(model, dataset, name, data)
    training = TrainedOn(name)
    training.check_draw(dataset)
    training.warn_of_other_shots(dataset)
    size = resolve_input_data_config(model)['input_size']
    gmacs = macs(model, size, where) / 1e9
    rate = _images_per_second(model, size, batch_size, where)
    scores = score_model(model, dataset, batch_size, where)
    cuda = where.startswith('cuda')
    return {
        **{key: scores[key] for key in SCORES},
        'parameters': sum(p.numel() for p in model.parameters()),
        'gmacs': gmacs,
        'images_per_second': rate,
        'memory_mb': (torch.cuda.max_memory_allocated(where) if cuda else _peak_memory()) / 1e6,
        'batch_size': batch_size,
        'device': torch.cuda.get_device_name(where) if cuda else where,
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
    }


@torch.inference_mode()
def macs(model: nn.Module, input_size: tuple[int, int, int], device: str = 'cpu') -> int:
    """Return the multiply-adds of convolutions and matrix products for one image."""
    # Fused attention is not counted on every device; as plain products it is.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, *input_size, device=device))
    return int(counter.get_total_flops()) // 2


@torch.inference_mode()
def _images_per_second(model: nn.Module, input_size: tuple[int, int, int], batch_size: int, device: str) -> float:
    images = torch.randn(batch_size, *input_size, device=device)
    seconds = []
    for _ in range(_TIMED_BATCHES + 1):
        start = time.perf_counter()
        # Reading a value back waits for the device, whatever it is.
        float(model(images).flatten()[0])
        seconds.append(time.perf_counter() - start)
    # The first one warms up.
    return batch_size / statistics.median(seconds[1:])


def _peak_memory() -> int:
    status = Path('/proc/self/status')
    if status.exists() and (found := re.search(r'VmHWM:\s+(\d+) kB', status.read_text())):
        return int(found[1]) * 1024
    # Linux would count what the parent process held when it started this one.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument('model')
    parser.add_argument('data')
    parser.add_argument('out', type=Path)
    parser.add_argument('--data-dir')
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--device')
    parser.add_argument('--threads', type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    import_named()
    try:
        row = measure(args.model, args.data, data_dir=args.data_dir, batch_size=args.batch_size, device=args.device)
    except LtzooError as error:
        write_atomically(args.out, json.dumps({'reason': str(error)}))
        return UNFIT if isinstance(error, ClassesError) else FAILED
    except Exception as error:
        if is_out_of_memory(error):
            return OUT_OF_MEMORY
        raise
    write_atomically(args.out, json.dumps(row))
    return 0


if __name__ == '__main__':
    sys.exit(main())
