"""Small random checkpoints of a dozen families, built in code, with a real tokenizer beside each."""

import json

FAMILIES = (
    "llama", "llama_tied", "gpt2", "gpt_neox", "gemma2", "mixtral", "bert", "bert_base", "bert_base_with_head", "roberta", "t5",
    "bart", "llava", "cohere",
)  # fmt: skip

ROWS, TOKENS = 331, 320


def write_tokenizer(directory, tokens=TOKENS):
    """A byte-level BPE of exactly ``tokens`` ids: any text encodes; pad 0, bos 1, eos 2, unk 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in "etaoinshr" for b in "etaoinshr"]
    words = ["<pad>", "<s>", "</s>", "<unk>", *alphabet, *("".join(pair) for pair in pairs)][:tokens]
    merges = [pair for pair in pairs if "".join(pair) in words]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **roles}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def build(family, directory, *, dtype="float32", rows=ROWS, tokens=TOKENS, shard_size=None):
    """Write the checkpoint of ``family`` into ``directory``; every parameter is random and none is degenerate."""
    import torch

    torch.manual_seed(0)
    model = _model(family, rows)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.05 + (parameter.ndim == 1))
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    model.to(getattr(torch, dtype))
    model.save_pretrained(directory, **({"max_shard_size": shard_size} if shard_size else {}))
    write_tokenizer(directory, tokens)
    if family == "bert_base_with_head":
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    return directory


def _model(family, rows):
    import transformers as t

    ids = {"vocab_size": rows, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | ids
    decoder = small | {"num_key_value_heads": 2, "max_position_embeddings": 128}
    if family in ("llama", "llama_tied"):
        return t.LlamaForCausalLM(t.LlamaConfig(**decoder, tie_word_embeddings=family == "llama_tied"))
    if family == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids))
    if family == "gpt_neox":
        return t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**small))
    if family == "gemma2":
        return t.Gemma2ForCausalLM(t.Gemma2Config(**decoder, head_dim=8, sliding_window=16))
    if family == "cohere":
        return t.CohereForCausalLM(t.CohereConfig(**decoder))
    if family == "mixtral":
        return t.MixtralForCausalLM(t.MixtralConfig(**decoder, num_local_experts=4))
    if family in ("bert", "bert_base_with_head"):
        config = t.BertConfig(**small, max_position_embeddings=64)
        return t.BertForPreTraining(config) if family == "bert_base_with_head" else t.BertForMaskedLM(config)
    if family == "bert_base":
        return t.BertModel(t.BertConfig(**small, max_position_embeddings=64))
    if family == "roberta":
        return t.RobertaForMaskedLM(t.RobertaConfig(**small, max_position_embeddings=66))
    if family == "t5":
        return t.T5ForConditionalGeneration(
            t.T5Config(d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0, **ids)
        )
    if family == "bart":
        sides = {f"{side}_{key}": value for side in ("encoder", "decoder")
                 for key, value in (("layers", 2), ("ffn_dim", 64), ("attention_heads", 4))}  # fmt: skip
        return t.BartForConditionalGeneration(t.BartConfig(d_model=32, max_position_embeddings=64, **sides, **ids))
    vision = t.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14,
        projection_dim=16,
    )  # fmt: skip
    return t.LlavaForConditionalGeneration(
        t.LlavaConfig(vision_config=vision, text_config=t.LlamaConfig(**decoder), image_token_index=300)
    )
