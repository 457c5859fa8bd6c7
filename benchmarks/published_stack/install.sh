#!/usr/bin/env bash
# The stack the paper was published on, in an environment of its own: install.sh DIR, then
# python -m benchmarks.throughput --against trl-0.7.4 --published_python DIR/bin/python
# Its pins exclude today's torch by metadata only, hence --no-deps and the dependencies by hand.
set -euo pipefail
env=${1:?usage: install.sh DIR}
# the torch of the environment that is active, so that both are measured on the same one
torch=torch==$(python -c 'from importlib.metadata import version; print(version("torch").split("+")[0])')
python3 -m venv "$env"
"$env/bin/pip" install -q "$torch" regex pyyaml requests tqdm packaging filelock safetensors psutil xxhash aiohttp
"$env/bin/pip" install -q --no-deps trl==0.7.4 transformers==4.36.2 tokenizers==0.15.2 huggingface-hub==0.20.3 \
    accelerate==0.25.0 peft==0.7.1 datasets==2.16.1 numpy==1.26.4 fsspec==2023.10.0 dill==0.3.7 \
    multiprocess==0.70.15 pandas==2.1.4 pyarrow==14.0.2 tyro==0.6.0 \
    docstring-parser rich shtab python-dateutil pytz six tzdata pyarrow-hotfix markdown-it-py mdurl pygments
"$env/bin/python" -c "import trl, transformers; print('trl', trl.__version__, 'transformers', transformers.__version__)"
