"""llumnixctl needs none of vllm, torch and ray, nor anything else of the daemon."""

import subprocess
import sys

HEAVY = ("vllm", "torch", "ray", "fastapi", "uvicorn", "zmq", "msgspec", "prometheus_client", "psutil")


def test_the_command_loads_nothing_heavy_and_its_help_names_the_exit_codes() -> None:
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Refuse())
from llumnix.ctl.cli import main
sys.argv = ["llumnixctl", "--help"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for text in ("--url", "--token-file", "Exit codes", "support-bundle"):
        assert text in done.stdout
