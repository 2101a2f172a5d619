"""What our registration adds to `import torch`: milliseconds of fresh processes.

python benchmarks/registration.py [--runs 50]
"""

import argparse
import statistics
import subprocess
import sys

ONCE = """
import importlib, time, typing  # which torch has imported long before
start = time.perf_counter()
importlib.import_module("bondwise_autoload").register()
print(1e3 * (time.perf_counter() - start))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    runs = parser.parse_args().runs
    took = [float(subprocess.check_output([sys.executable, "-c", ONCE])) for _ in range(runs)]
    print(f"median {statistics.median(took):.3f} ms, least {min(took):.3f}, most {max(took):.3f}")


if __name__ == "__main__":
    main()
