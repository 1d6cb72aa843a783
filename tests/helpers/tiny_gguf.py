"""A random llama of 113 KB as GGUF, the one whose files of llama-perplexity the tests keep."""

import gguf
import numpy as np

# 232 bytes of which llama-perplexity has made tests/scoring/imports/data/llama_perplexity.bin.
TEXT = (
    "The thin king is in the inn; nothing in it is thin. In the end, the thing in the tin was a ring. "
    "\u00c6ther \u2014 \u4e2d\u6587.\n"
) * 2
WIDTH, HEADS, INNER, VOCABULARY = 32, 4, 64, 261


def tiny_gguf(path):
    """Write it: 1 layer, and of tokens the bytes, "th", "in", BOS, EOS and one for padding."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    _add_tokenizer(writer)

    def add(name, *shape, scale):
        writer.add_tensor(name, (rng.standard_normal(shape) * scale).astype(np.float32))

    add("token_embd.weight", VOCABULARY, WIDTH, scale=1.0)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    add("output.weight", VOCABULARY, WIDTH, scale=0.3)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{name}.weight", WIDTH, WIDTH, scale=WIDTH**-0.5)
    add("blk.0.ffn_gate.weight", INNER, WIDTH, scale=WIDTH**-0.5)
    add("blk.0.ffn_up.weight", INNER, WIDTH, scale=WIDTH**-0.5)
    add("blk.0.ffn_down.weight", WIDTH, INNER, scale=INNER**-0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    tokens = [letters[byte] for byte in range(256)] + ["th", "in", "<s>", "</s>", "<pad>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 258 + [3] * 3)
    writer.add_token_merges(["t h", "i n"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(259)
    writer.add_add_bos_token(True)
