"""What `import ltzoo` costs and gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ltzoo


def test_importing_ltzoo_loads_nothing_heavy_beside_timm() -> None:
    script = (
        'import sys, timm\n'
        'before = {name.partition(".")[0] for name in sys.modules}\n'
        'import ltzoo\n'
        'new = {name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)\n'
        'assert new == {"ltzoo"}, new\n'
        'assert "ltzoo.data" not in sys.modules\n'
        'assert ltzoo.data.longtail_indices([0, 1] * 4, 2.0).tolist()\n'
    )
    subprocess.run([sys.executable, '-c', script], check=True)


def test_subpackages_come_when_asked_for() -> None:
    assert ltzoo.data.longtail_indices is sys.modules['ltzoo.data'].longtail_indices
    assert 'data' in dir(ltzoo)
    with pytest.raises(AttributeError, match="module 'ltzoo' has no attribute 'dta'"):
        ltzoo.dta  # noqa: B018


def test_version_is_a_string() -> None:
    assert ltzoo.__version__[0].isdigit()
