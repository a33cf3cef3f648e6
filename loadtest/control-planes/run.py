#!/usr/bin/env python3
"""Drives Shika and Envoy with public control planes and compares what each makes of them. See README.md."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.dont_write_bytecode = True

import under_go_control_plane
import under_sovereign

ROOT = Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plane", choices=["sovereign", "go-control-plane"])
    parser.add_argument("--shika", default=str(ROOT / "target/debug/shika-proxy"))
    parser.add_argument("--envoy", default=shutil.which("envoy") or "envoy")
    parser.add_argument("--updates", type=int, default=20, help="states that sovereign serves after the first")
    parser.add_argument("--seed", type=int, default=1, help="of what sovereign serves")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="shika-planes-"))
    if options.plane == "sovereign":
        failures = under_sovereign.run(options.shika, options.envoy, directory, options.updates, options.seed)
    else:
        server = ROOT / "target/tools/bin/go-control-plane"
        failures = under_go_control_plane.run(options.shika, options.envoy, str(server), directory)
    if failures:
        print(f"{failures} failures; logs are in {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
