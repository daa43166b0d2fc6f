"""What the sentences of errors share."""

from __future__ import annotations

import pytest
import torch

from ltzoo.errors import did_you_mean, is_out_of_memory


def test_how_a_sentence_on_an_unknown_name_ends() -> None:
    assert did_you_mean('bass', ['base', 'other']) == '; did you mean base?'
    assert did_you_mean('x', ['base', 'other']) == '.'
    assert did_you_mean('x', ['base', 'other'], otherwise='; it has base, other') == '; it has base, other'
    assert did_you_mean('x', ['base'], cutoff=0, otherwise='') == '; did you mean base?'
    assert did_you_mean('x', [], cutoff=0, otherwise='') == ''


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError('CUDA out of memory.'), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes'), True),
        (RuntimeError('shapes do not match'), False),
        (OSError('out of memory'), False),
    ],
)
def test_what_less_memory_helps_against(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
