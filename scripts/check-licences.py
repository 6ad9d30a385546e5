#!/usr/bin/env python3
"""Every dependency's licence (an SPDX expression) must be allowed by deny.toml. Needs nothing but cargo and Python.

Dependencies must also come from crates.io: no git repository, no path but our own.
"""
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = set(re.findall(r'^    "([^"]+)",$', (ROOT / "deny.toml").read_text(), re.MULTILINE))


def allowed(expression: str) -> bool:
    """Evaluates AND, OR and brackets; "/" is how OR was written before SPDX."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    at = 0

    def atom() -> bool:
        nonlocal at
        token = tokens[at]
        at += 1
        if token == "(":
            value = either()
            at += 1
            return value
        if tokens[at : at + 1] == ["WITH"]:
            token = f"{token} WITH {tokens[at + 1]}"
            at += 2
        return token in ALLOWED

    def both() -> bool:
        nonlocal at
        value = atom()
        while tokens[at : at + 1] == ["AND"]:
            at += 1
            value = atom() and value
        return value

    def either() -> bool:
        nonlocal at
        value = both()
        while tokens[at : at + 1] == ["OR"]:
            at += 1
            value = both() or value
        return value

    return either()


command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
packages = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)["packages"]
faults = []
for package in packages:
    name = f"{package['name']} {package['version']}"
    if package["source"] is None:
        continue
    if not package["source"].startswith("registry+"):
        faults.append(f"{name}: comes from {package['source']}")
    if not allowed(package["license"] or "none"):
        faults.append(f"{name}: {package['license'] or 'no licence'} is not in deny.toml")
print("\n".join(faults) or f"{len(packages)} packages, every licence is allowed by deny.toml")
sys.exit(bool(faults))
