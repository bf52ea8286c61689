"""The terminal interface needs none of vllm, torch and ray, nor anything of the daemon."""

import subprocess
import sys

HEAVY = ("vllm", "torch", "ray", "fastapi", "uvicorn", "zmq", "msgspec")


def test_the_command_loads_nothing_heavy() -> None:
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Refuse())
from llumnix_tui.cli import main
sys.argv = ["llumnix-tui", "--help"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for option in ("--url", "--token-file", "--read-only", "--record", "--replay"):
        assert option in done.stdout
