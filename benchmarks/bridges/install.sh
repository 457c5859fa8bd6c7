#!/usr/bin/env bash
# verl and SkyRL in an environment of their own, on top of the packages of the environment that is active: install.sh DIR,
# then, in the repository, DIR/bin/python -m pytest tests/benchmarks/bridges
# Their pins exclude the versions that this project needs, hence --no-deps and the dependencies by hand.
set -euo pipefail
env=${1:?usage: install.sh DIR}
packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
python -m venv "$env"
echo "$packages" > "$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/active.pth"
"$env/bin/pip" install -q --no-deps verl==0.9.1 skyrl==0.3.0 tensordict==0.10.0 pyvers orjson codetiming torchdata \
    hydra-core==1.3.* omegaconf antlr4-python3-runtime==4.9.* TransferQueue msgspec loguru skyrl-gym
"$env/bin/pip" install -q aiohttp cachetools uvicorn fastapi "ray>=2.40"
"$env/bin/python" -c "import verl; print('verl', verl.__version__)"
