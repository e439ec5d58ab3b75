"""Sixteen requests with sixteen adapters at once, against other ways to serve them on the same machine.

    python benchmarks/engine.py [--llama-cpp f16]

Every way answers the same prompts with the same adapters, greedily, with as many tokens each; the ways take
turns, and medians are compared. PEFT keeps its adapters in the model's dtype, which is its faster way here.
The adapters are noise, of the rank and modules of the shipped hypernetwork.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _long_requests import REQUEST
from _machine import machine, table
from mixed_batch import compared, noise

from shoal.adapters.lora import LoRA
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Limits, Request
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone, load_backbone

EACH = "engine, an adapter each"
BARE = "engine, bare model"
ONE = "engine, one request, bare model"
SWITCHED = "PEFT, set_adapter and generate, one by one"
MIXED = "PEFT, adapter_names, one batch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--modules", default="q_proj,v_proj")
    parser.add_argument("--tokens", type=int, default=32, help="generated for every request")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--llama-cpp", choices=["f16", "bf16"], help="llama.cpp's server too, by xllamacpp")
    args = parser.parse_args()

    backbone = load_backbone()
    targets = backbone.shape.select(args.modules.split(","), None)
    generator = torch.Generator().manual_seed(0)
    loras = [
        noise(LoRA.identity(targets, args.rank, 2.0 * args.rank, generator=generator), generator)
        for _ in range(args.requests)
    ]
    texts = [REQUEST.format(number) for number in range(args.requests)]
    prompts = backbone.encode_prompts(texts)
    ways = engine_ways(backbone, prompts, loras, args.tokens)
    ways |= peft_ways(prompts, loras, args.modules.split(","), args.tokens)
    if args.llama_cpp:
        from _llama_cpp import llama_cpp_ways

        ways |= llama_cpp_ways(backbone, texts, loras, args.tokens, args.llama_cpp)

    made: dict[str, int] = {}

    def counted(name: str, way: Callable[[], int]) -> Callable[[], None]:
        def run() -> None:
            made[name] = way()

        return run

    times = compared({name: counted(name, way) for name, way in ways.items()}, args.repeats)
    speeds = {name: made[name] / times[name] for name in ways}
    rows = [
        [
            name,
            str(made[name]),
            f"{times[name]:.2f}",
            f"{speeds[name]:.0f}",
            f"{speeds[EACH] / speeds[name]:.2f}",
        ]
        for name in ways
    ]
    print(
        f"{args.requests} requests, {args.tokens} tokens each, rank {args.rank}, {args.modules}; "
        f"{machine(backbone.dtype)}\n"
    )
    print(table(["way", "tokens", "seconds", "tokens per second", "adapters each against it"], rows))
    print(f"\nTime with an adapter each over the bare model: {times[EACH] / times[BARE]:.2f} (at most 1.3).")


def engine_ways(
    backbone: Backbone, prompts: list[list[int]], loras: list[LoRA], tokens: int
) -> dict[str, Callable[[], int]]:
    limits = Limits(max_batch=len(prompts))

    def serve(requests: list[Request]) -> int:
        engine, count = Engine(backbone, limits=limits), 0
        for request in requests:
            engine.submit(request)
        while engine.busy:
            for event in engine.step():
                if event.delta is not None and event.delta.finish_reason:
                    count += event.delta.completion_tokens
        return count

    def asked(prompt: list[int], lora: LoRA | None) -> Request:
        greedy = Sampling(temperature=0.0)
        return Request(prompt, lora, tokens, sampling=greedy, stop_at_end=False)

    own = [lora.to(backbone.device, backbone.dtype) for lora in loras]
    return {
        EACH: lambda: serve([asked(p, lora) for p, lora in zip(prompts, own, strict=True)]),
        BARE: lambda: serve([asked(p, None) for p in prompts]),
        ONE: lambda: serve([asked(prompts[0], None)]),
    }


def peft_ways(
    prompts: list[list[int]], loras: list[LoRA], modules: list[str], tokens: int
) -> dict[str, Callable[[], int]]:
    from peft import LoraConfig, get_peft_model

    backbone = load_backbone()  # PEFT replaces modules
    config = LoraConfig(r=loras[0].rank, lora_alpha=loras[0].alpha, target_modules=modules)
    names = [f"adapter{number}" for number in range(len(loras))]
    model = get_peft_model(backbone.model, config, names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        model.add_adapter(name, config, autocast_adapter_dtype=False)
    for name, lora in zip(names, loras, strict=True):
        for module, factors in lora.factors.items():
            layer = model.base_model.model.get_submodule(module)
            layer.lora_A[name].weight.data = factors.a.to(backbone.dtype)
            layer.lora_B[name].weight.data = factors.b.to(backbone.dtype)
    model.eval()
    how = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    padded = backbone.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")

    @torch.no_grad()
    def switched() -> int:
        count = 0
        for name, prompt in zip(names, prompts, strict=True):
            model.set_adapter(name)
            ids = torch.tensor([prompt])
            count += model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how).shape[1] - len(
                prompt
            )
        return count

    @torch.no_grad()
    def mixed() -> int:
        made = model.generate(**padded, adapter_names=names, **how)
        return (made.shape[1] - padded["input_ids"].shape[1]) * len(prompts)

    return {SWITCHED: switched, MIXED: mixed}


if __name__ == "__main__":
    main()
