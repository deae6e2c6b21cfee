import gc
import subprocess
import sys

import pytest

from timm_mvhybrid.runtime.garbage import collection_paused


@pytest.fixture(params=[True, False])
def enabled(request):
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_collection_is_as_it_was_after_a_pause(enabled):
    with collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled() is enabled
    with pytest.raises(ImportError), collection_paused():
        raise ImportError("no timm")
    assert gc.isenabled() is enabled


@pytest.mark.parametrize("before", ["enable", "disable"])
def test_importing_the_package_leaves_collection_as_it_was(before):
    program = f"import gc; gc.{before}(); import timm_mvhybrid; print(gc.isenabled())"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert out.strip() == str(before == "enable")
