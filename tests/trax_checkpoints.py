"""Trax checkpoints for the tests: random weights in checkpoint order, and the ways Trax has stored them."""

import gzip
import io
import json
import pickle
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"


def fixture_weights(case):
    """The weights of an oracle in checkpoint order."""
    with np.load(FIXTURES / f"{case}.npz") as arrays:
        return [arrays[name] for name in arrays.files if name.startswith("weight.")]


def random_weights(positions, shared=(False, True), d=12, d_ff=20, heads=3, key=5, value=5, vocab=17, seed=0):
    """Weights of a `ReformerLM` of which nothing is 0 or 1. `positions`: shapes of the position weights."""
    shapes = [(vocab, d), *positions]
    for shared_qk in shared:
        shapes += [(d,), (d,), *[(heads, d, key)] * (1 if shared_qk else 2), (heads, d, value), (heads, value, d)]
        shapes += [(d,), (d,), (d, d_ff), (d_ff,), (d_ff, d), (d,)]
    shapes += [(2 * d,), (2 * d,), (2 * d, vocab), (vocab,)]
    generator = np.random.default_rng(seed)
    return [(0.4 * generator.standard_normal(shape)).astype(np.float32) for shape in shapes]


AXIAL = [(1, 6, 1, 5), (1, 1, 8, 7)]
LOCAL = {"type": "local", "chunk_len": 4, "n_chunks_before": 1}
LSH = {"type": "lsh", "chunk_len": 6, "n_chunks_before": 1, "n_hashes": 2, "n_buckets": 4}


def settings(attention=(LOCAL, LSH), length=48, **model):
    """A JSON configuration."""
    return {"model": {"max_len": 48, "ff_activation": "relu", **model}, "attention": list(attention), "length": length}


def write_config(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(config, str):
        (folder / "config.gin").write_text(config)
    else:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def npy_gz(weights):
    buffer = io.BytesIO()
    for weight in weights:
        np.save(buffer, weight, allow_pickle=False)
    return gzip.compress(buffer.getvalue(), 2)


def write_newest(folder, weights, config):
    """Trax 1.3.8 and later."""
    write_config(folder, config)
    (folder / "model.weights.npy.gz").write_bytes(npy_gz(weights))
    checkpoint = {"step": 5, "flat_weights": 2, "flat_state": [], "slots_per_task": 2}
    (folder / "model.pkl.gz").write_bytes(gzip.compress(pickle.dumps(checkpoint)))
    return folder


def write_flat(folder, weights, config, protocol=4):
    write_config(folder, config)
    checkpoint = {"step": 5, "flat_weights": list(weights), "slots": [], "flat_state": []}
    (folder / "model.pkl.gz").write_bytes(gzip.compress(pickle.dumps(checkpoint, protocol)))
    return folder


def write_shards(folder, weights, config, count=3):
    write_config(folder, config)
    (folder / "model.pkl.gz").write_bytes(gzip.compress(pickle.dumps({"step": 5, "flat_weights": count})))
    for i, part in enumerate(np.array_split(np.arange(len(weights)), count)):
        (folder / f"model.pkl.gz.shard{i}").write_bytes(pickle.dumps([weights[j] for j in part]))
    return folder


def write_nested(folder, tree, config, protocol=3):
    write_config(folder, config)
    (folder / "model.pkl").write_bytes(pickle.dumps({"step": 5, "weights": tree, "slots": None}, protocol))
    return folder


def nest(weights, shared, generation, num_positions, chunked=False):
    """The tree in which a Trax release keeps these weights: "head", "2020-05" or "1.2.4"."""
    weights = iter(weights)
    take = lambda count: tuple(next(weights) for _ in range(count))
    embedding, positions = next(weights), take(num_positions)
    blocks = [] if generation != "1.2.4" else [()]
    for shared_qk in shared:
        norm, attention = take(2), take(3 if shared_qk else 4)
        ff_norm, first, second = take(2), take(2), take(2)
        inner = (ff_norm, first, (), (), second, ())
        feed_forward = {"head": (inner,), "2020-05": (((), ((), (), inner)),), "1.2.4": (((), ((), (), inner)),)}
        if chunked:
            inner = ((((), inner),),)
            feed_forward = dict.fromkeys(feed_forward, (inner,))
        blocks += [[(norm,), attention], (), list(feed_forward[generation]), ()]
    norm, dense = take(2), take(2)
    assert next(weights, None) is None
    if generation == "1.2.4":
        return [(), embedding, (), list(positions), (), blocks, [norm, (), dense, ()]]
    pos = ((), positions) if generation == "head" else list(positions)
    last = ((), dense) if generation == "head" else dense
    return [(), embedding, (), pos, (), blocks, (), norm, (), last]
