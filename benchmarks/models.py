"""The model of the benchmarks, as each peer builds it: 6 layers alternating local and LSH, width 256, feed-forward 512,
2 heads of 64, chunks of 64, vocabulary 320; and how many floating-point operations it needs."""

import math

import torch

WIDTH, INNER, HEADS, HEAD_SIZE, CHUNK, VOCABULARY = 256, 512, 2, 64, 64, 320


def reformer_settings(run):
    """Configuration fields that transformers and we share; buckets 2 * length / chunk as in the paper."""
    rows = 2 ** (int(math.log2(run.length)) // 2)
    buckets = 2 * run.length // CHUNK
    first = 2 ** (int(math.log2(max(buckets, 2))) // 2)
    return {
        "attn_layers": (["local", "lsh"] * run.layers)[: run.layers],
        "hidden_size": WIDTH,
        "feed_forward_size": INNER,
        "num_attention_heads": HEADS,
        "attention_head_size": HEAD_SIZE,
        "vocab_size": VOCABULARY,
        "local_attn_chunk_length": CHUNK,
        "lsh_attn_chunk_length": CHUNK,
        "num_buckets": buckets if buckets <= 128 else [first, buckets // first],
        "num_hashes": run.rounds,
        "axial_pos_shape": [run.length // rows, rows],
        "axial_pos_embds_dim": [64, 192],
        "max_position_embeddings": run.length,
        "hidden_dropout_prob": run.dropout,
        "local_attention_probs_dropout_prob": run.dropout,
        "lsh_attention_probs_dropout_prob": 0.0,
        "chunk_size_lm_head": run.chunk_size_lm_head,
        "is_decoder": True,
        "use_cache": False,
    }


def build(run):
    """A model whose call on token ids, with labels, gives a loss as transformers' do."""
    torch.manual_seed(0)
    peers = {
        "hf_reformer": _ours, "transformers": _stock, "gpt2": _gpt2, "reformer_pytorch": _reformer_pytorch,
        "encoder_decoder": _encoder_decoder, "marian": _marian,
    }  # fmt: skip
    return peers[run.peer](run)


def _ours(run):
    from hf_reformer import ReformerConfig, ReformerModelWithLMHead

    settings = reformer_settings(run)
    if run.strict:
        settings["attn_layers"] = [f"strict_{kind}" for kind in settings["attn_layers"]]
        settings["num_buckets"] = None
    config = ReformerConfig(**settings, reversible=run.reversible, attn_implementation=run.implementation)
    return ReformerModelWithLMHead(config)


def _encoder_decoder(run):
    from hf_reformer import ReformerConfig, ReformerForConditionalGeneration

    settings = reformer_settings(run) | {
        "attn_layers": (["strict_local", "strict_lsh"] * run.layers)[: run.layers], "num_buckets": None, "is_decoder": False,
        "is_encoder_decoder": True, "decoder_max_position_embeddings": run.target, "decoder_start_token_id": 0,
        "lsh_num_chunks_after": 1, "local_num_chunks_after": 1, "reversible": run.reversible,
    }  # fmt: skip
    return ReformerForConditionalGeneration(ReformerConfig(**settings))


def _marian(run):
    from transformers import MarianConfig, MarianMTModel

    sizes = {
        "d_model": WIDTH,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": run.layers, f"{side}_attention_heads": HEADS, f"{side}_ffn_dim": INNER}
    config = MarianConfig(**sizes, max_position_embeddings=run.length, dropout=0.0, forced_eos_token_id=None)
    return MarianMTModel(config)


def _stock(run):
    from transformers.models.reformer.configuration_reformer import ReformerConfig
    from transformers.models.reformer.modeling_reformer import ReformerModelWithLMHead

    return ReformerModelWithLMHead(ReformerConfig(**reformer_settings(run)))


def _gpt2(run):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=run.length, n_embd=WIDTH, n_layer=run.layers, n_head=WIDTH // HEAD_SIZE,
        n_inner=INNER, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _reformer_pytorch(run):
    """All of its layers are LSH; it has no decoder like ours with local layers in between."""
    from reformer_pytorch import ReformerLM

    model = ReformerLM(
        num_tokens=VOCABULARY, dim=WIDTH, depth=run.layers, max_seq_len=run.length, heads=HEADS, dim_head=HEAD_SIZE,
        bucket_size=CHUNK, n_hashes=run.rounds, ff_chunks=1, ff_mult=INNER // WIDTH, causal=True,
    )  # fmt: skip

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, labels=None):
            logits = self.model(input_ids)
            if labels is None:
                return logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return type("Output", (), {"loss": loss})()

    return Loss()


def forward_flops(run):
    """Multiplications and additions of all matrix products in one forward: projections, feed-forward, attention, head.

    None for a peer whose products are not counted.
    """
    inner, length = HEADS * HEAD_SIZE, run.length
    feed_forward = 2 * WIDTH * INNER
    if run.peer in ("hf_reformer", "transformers"):
        local = 4 * WIDTH * inner + 2 * inner * 2 * CHUNK
        lsh = 3 * WIDTH * inner + run.rounds * 2 * inner * 2 * CHUNK
        attention = math.ceil(run.layers / 2) * local + run.layers // 2 * lsh
        return 2 * length * (attention + run.layers * feed_forward + 2 * WIDTH * VOCABULARY)
    if run.peer == "gpt2":  # a query meets half of all keys: the others lie behind it
        attention = 4 * WIDTH * WIDTH + 2 * WIDTH * length // 2
        return 2 * length * (run.layers * (attention + feed_forward) + WIDTH * VOCABULARY)
    return None


def floor_seconds(run, flops_per_second):
    """Time of the products alone, or None: forward, in training twice as much in backward, and once more if recomputed."""
    flops = forward_flops(run)
    recomputed = run.peer != "gpt2" and run.reversible
    forwards = 1 if run.mode == "forward" else 3 + recomputed
    return None if flops is None else flops * forwards / flops_per_second
