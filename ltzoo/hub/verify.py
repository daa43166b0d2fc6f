"""Verify: that a published model is what its results say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltzoo.hub.vectors import VerificationError, check_vectors
from ltzoo.models import create_model
from ltzoo.models.download import file_hash
from ltzoo.models.entries import entry_of, get_results
from ltzoo.models.factory import weights_file

__all__ = ['Verification', 'verify']

# Points of accuracy that another machine's rounding may move: one image of 10,000 is 0.01.
_SCORE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Verification:
    """What was checked, and found right.

    Attributes:
        name: the model, with its tag.
        sha256: of its weights.
        logit_difference: largest difference to the stored logits, relative to the largest of them.
        scores: top1, many, medium, few measured anew, in percent; None if no data was given.
    """

    name: str
    sha256: str
    logit_difference: float
    scores: dict[str, float | None] | None


def verify(name: str, data_dir: str | Path | None = None) -> Verification:
    """Check a published model: the hash of its weights, its stored logits, and with data its scores.

    Args:
        name: a zoo name, with or without a tag.
        data_dir: where the files of its data set are; without, scores are not measured.

    Raises:
        NoWeightsError: if it is not published.
        DownloadError: if its weights cannot be had.
        VerificationError: if something is not what the results say.
        LtzooError: with `data_dir`, as `load_data` and `score_model`.
    """
    results = get_results(name)
    entry = entry_of(name)
    assert entry is not None and entry.folder is not None
    digest = file_hash(weights_file(entry))
    if digest != results['sha256']:
        raise VerificationError(f'the weights of {entry.full_name} have SHA-256 {digest}, not {results["sha256"]}')
    model = create_model(entry.full_name, pretrained=True).eval()
    difference = check_vectors(model, entry.folder / 'vectors.safetensors', entry.full_name)
    scores = None if data_dir is None else _check_scores(model, results, data_dir)
    return Verification(entry.full_name, digest, difference, scores)


def _check_scores(model: Any, results: dict[str, Any], data_dir: str | Path) -> dict[str, float | None]:
    from ltzoo.data import load_data
    from ltzoo.evaluation.evaluate import score_model

    measured = score_model(model, load_data(results['data'], data_dir), 256, 'cpu')
    stated = results['runs'][0]
    scores: dict[str, float | None] = {}
    for key in ('top1', 'many', 'medium', 'few'):
        scores[key] = value = measured[key]
        if (value is None) != (stated[key] is None) or (
            value is not None and abs(value - stated[key]) > _SCORE_TOLERANCE
        ):
            raise VerificationError(
                f'{results["name"]} scores {key} {value} on {results["data"]}, stated {stated[key]}'
            )
    return scores
