"""Ways out of Python: ONNX and `torch.export`, each checked against the model before it is left behind."""

from __future__ import annotations

import copy
import io
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltzoo.errors import LtzooError
from ltzoo.files import check_target, write_atomically, writing
from ltzoo.hub.export import ExportError
from ltzoo.hub.vectors import LOGIT_TOLERANCE, logit_difference, make_vectors

__all__ = ['FORMATS', 'DeployError', 'deploy']

FORMATS = ('.onnx', '.pt2')


class DeployError(LtzooError, RuntimeError):
    """A model that does not come out of an exporter as it went in."""


def deploy(model: nn.Module, file: str | os.PathLike[str]) -> float:
    """Write a model for use without this package, with any number of images a batch, and check its logits.

    Args:
        model: made by `ltzoo.create_model`; it is copied, not changed.
        file: `NAME.onnx`, or `NAME.pt2` for `torch.export.load`, or a link to it; it appears whole or not at all.

    Returns:
        Largest difference of a logit to the model's own, relative to the largest logit, for batches of 2 and 3.

    Raises:
        LtzooError: if the file cannot be written.
        ExportError: if its ending is no format, or the packages for ONNX are missing.
        DeployError: if the exporter cannot take the model, or what comes out gives other logits.
    """
    file = Path(file)
    if file.suffix not in FORMATS:
        raise ExportError(f'{file} is of no known format: the ending can be {" or ".join(FORMATS)}')
    check_target(file)
    plain = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    images = make_vectors(plain)['images']
    batches = [images[:1].repeat(2, 1, 1, 1).flip(-1), images[:1].repeat(3, 1, 1, 1), images[:1]]
    run = _onnx if file.suffix == '.onnx' else _program
    beside = Path(os.path.realpath(file)).parent
    with writing(file), tempfile.TemporaryDirectory(prefix=f'.{file.name}.', dir=beside) as place:
        made = Path(place) / file.name
        try:
            outputs = run(plain, batches, made)
        except (LtzooError, OSError):
            raise
        except Exception as error:  # Exporters raise whatever the code they trace through does.
            lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise DeployError(f'{file} was not written: the exporter does not take this model: {lines[0]}') from error
        with torch.inference_mode():
            expected = [plain(batch) for batch in batches]
        # All batches as one: Python's max would pass over a nan.
        difference = logit_difference(torch.cat(outputs), torch.cat(expected))
        if not difference <= LOGIT_TOLERANCE:
            raise DeployError(f'{file} was not written: its logits differ by {difference:.1e} of the largest')
        write_atomically(file, made.read_bytes())
    return difference


def _onnx(model: nn.Module, batches: list[Tensor], file: Path) -> list[Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
        from timm.utils.onnx import onnx_export
    except ImportError as error:
        raise ExportError(f"{file.name} needs the packages for ONNX: pip install 'ltzoo[onnx]' ({error})") from error
    # The exporter tells of every step it takes.
    noisy = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        onnx_export(model, str(file), example_input=batches[0], use_dynamo=True, external_data=False)
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    (given,) = session.get_inputs()
    return [torch.from_numpy(session.run(None, {given.name: batch.numpy()})[0]) for batch in batches]


def _program(model: nn.Module, batches: list[Tensor], file: Path) -> list[Tensor]:
    batch = torch.export.Dim('batch', min=1)
    exported = torch.export.export(model, (batches[0],), dynamic_shapes=({0: batch},))
    # Into memory first: a disk that is full ends the whole process where PyTorch writes to it itself.
    content = io.BytesIO()
    torch.export.save(exported, content)
    file.write_bytes(content.getvalue())
    loaded: Any = torch.export.load(file).module()
    with torch.inference_mode():
        return [loaded(batch) for batch in batches]
