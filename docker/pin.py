"""Prints the versions that a report of pip found, for docker/requirements.txt."""

import json
import sys
from pathlib import Path

found = [package["metadata"] for package in json.loads(Path(sys.argv[1]).read_text())["install"]]
print("# What `pip install .[digits]` found when these versions were tested; make docker-requirements finds them anew.")
for package in sorted(found, key=lambda package: package["name"].lower()):
    if package["name"] != "layershuffle":
        print(f"{package['name']}=={package['version']}")
