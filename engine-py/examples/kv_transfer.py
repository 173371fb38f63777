"""Hands a KV cache from a prefill process to a decode process, page by page, with torch CPU tensors.

    python kv_transfer.py            both processes on this machine; needs torch

The decode process registers its page pool once. The prefill process computes layer after layer, writes each layer's pages as soon as
they are there, and goes on computing meanwhile; with the last layer a notification says which request is complete.
"""

from __future__ import annotations

import multiprocessing
import sys

import weft

LAYERS, PAGES, PAGE_TOKENS, HEADS, HEAD_DIM = 8, 64, 16, 8, 128
"""A small model's cache: keys and values of `PAGES` pages in each layer."""

PICKED = [3, 1, 40, 41, 42, 7, 63, 20]
"""The pages that the decode side has set aside for this request."""


def pool() -> "torch.Tensor":
    return torch.zeros(LAYERS, PAGES, 2, PAGE_TOKENS, HEADS, HEAD_DIM, dtype=torch.bfloat16)


def layer_of(number: int) -> "torch.Tensor":
    """What a model would compute: the keys and values of one layer for all picked pages."""
    generator = torch.Generator().manual_seed(number)
    shape = (len(PICKED), 2, PAGE_TOKENS, HEADS, HEAD_DIM)
    return torch.rand(shape, generator=generator).to(torch.bfloat16)


def decode(names: "multiprocessing.Queue[str]", verdict: "multiprocessing.Queue[str]") -> None:
    cache = pool()
    with weft.Engine() as engine, engine.register(cache, name="kv", access="w"):
        names.put(engine.name)
        note = engine.notification(timeout=60)
        assert note is not None and note.payload == b"request 1", note
        for layer in range(LAYERS):
            assert torch.equal(cache[layer, PICKED], layer_of(layer)), f"layer {layer} is wrong"
        others = [page for page in range(PAGES) if page not in PICKED]
        assert not cache[:, others].any(), "other pages were touched"
        verdict.put(f"{note.sender} sent {LAYERS} layers of {len(PICKED)} pages")


def prefill(name: str) -> None:
    computed = torch.zeros(LAYERS, len(PICKED), 2, PAGE_TOKENS, HEADS, HEAD_DIM, dtype=torch.bfloat16)
    page_bytes = computed[0, 0].nbytes
    layer_bytes = computed[0].nbytes
    with weft.Engine() as engine:
        local = engine.register(computed, access="")
        remote = engine.open(name)["kv"]
        running = []
        for layer in range(LAYERS):
            computed[layer] = layer_of(layer)
            pages = [(layer * PAGES + page) * page_bytes for page in PICKED]
            batch = engine.batch()
            batch.write(local.range(layer * layer_bytes, layer_bytes), remote.pages(pages, page_bytes))
            running.append(batch.submit())
        for transfer in running:
            transfer.wait()
        engine.open(name).notify(b"request 1")


def main() -> int:
    context = multiprocessing.get_context("spawn")
    names, verdict = context.Queue(), context.Queue()
    decoding = context.Process(target=decode, args=(names, verdict))
    decoding.start()
    try:
        prefill(names.get(timeout=60))
        print(verdict.get(timeout=60))
        decoding.join(60)
        return decoding.exitcode or 0
    finally:
        decoding.kill()


try:
    import torch
except ImportError:
    print("SKIP: kv_transfer: torch is not installed", file=sys.stderr)
    sys.exit(0)

if __name__ == "__main__":
    sys.exit(main())
