"""What `import ltzoo` costs and gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ltzoo

PROGRAM = """
import socket, sys, timm

used = []

def refuse(*arguments):
    used.append(arguments)
    raise OSError('there is no network')

socket.socket.connect = socket.getaddrinfo = refuse
before = {name.partition('.')[0] for name in sys.modules}
import ltzoo
new = {name.partition('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
assert new == {'ltzoo'}, new
assert 'ltzoo.data' not in sys.modules
ltzoo.create_model(ltzoo.list_pretrained()[0], pretrained=True)
assert ltzoo.data.longtail_indices([0, 1] * 4, 2.0).tolist()
optional = [name for name in ('datasets', 'pandas', 'sklearn', 'matplotlib') if name in sys.modules]
assert not optional, optional
assert not used, used
"""


def test_importing_ltzoo_loads_nothing_heavy_beside_timm_and_published_weights_need_no_network() -> None:
    subprocess.run([sys.executable, '-c', PROGRAM], check=True)


def test_subpackages_come_when_asked_for() -> None:
    assert ltzoo.data.longtail_indices is sys.modules['ltzoo.data'].longtail_indices
    assert 'data' in dir(ltzoo)
    with pytest.raises(AttributeError, match="module 'ltzoo' has no attribute 'dta'"):
        ltzoo.dta  # noqa: B018


def test_version_is_a_string() -> None:
    assert ltzoo.__version__[0].isdigit()
