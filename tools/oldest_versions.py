"""Print, as pip constraints, the oldest version of each package that setup.cfg promises to work with."""

import configparser
import re
from pathlib import Path

DEVELOPMENT = "dev"

settings = configparser.ConfigParser()
settings.read(Path(__file__).parent.parent / "setup.cfg")
extras = (names for extra, names in settings["options.extras_require"].items() if extra != DEVELOPMENT)
for requirement in "\n".join([settings["options"]["install_requires"], *extras]).split():
    name, oldest = re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()
    print(f"{name}=={oldest}")
