"""`import nap` alone: every part that the README names is there, and what only some need is not imported before."""

import subprocess
import sys


def test_parts_are_imported_when_named():
    code = (
        "import sys, nap; before = {name for name in sys.modules if name.startswith('nap.')};"
        "assert 'nap.networks' not in before and 'flax' not in sys.modules;"
        "print(nap.networks.MLP, nap.layers.Linear, nap.noisy.SIGMA, nap.interventions.redo, nap.diagnostics.probe)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    wrong = subprocess.run(
        [sys.executable, "-c", "import nap; nap.layer"], capture_output=True, encoding="utf-8", check=False
    )
    assert "module 'nap' has no attribute 'layer'" in wrong.stderr
