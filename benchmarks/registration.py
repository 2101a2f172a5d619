"""What our registration adds to `import torch`: milliseconds of fresh processes.

python benchmarks/registration.py [--runs 20]
"""

import argparse
import os
import statistics
import subprocess
import sys

ONCE = """
import importlib, time
import torch
start = time.perf_counter()
importlib.import_module("bondwise_autoload").register()
print(1e3 * (time.perf_counter() - start))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    env = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # torch alone, then ours
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs
    command = [sys.executable, "-c", ONCE]
    took = [float(subprocess.check_output(command, env=env)) for _ in range(runs)]
    print(f"median {statistics.median(took):.3f} ms, least {min(took):.3f}, most {max(took):.3f}")


if __name__ == "__main__":
    main()
