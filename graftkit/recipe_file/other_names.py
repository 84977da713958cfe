"""What people look for under another name: the name that it has in a recipe, or the tool that does it."""

from collections.abc import Iterable, Mapping

_TRAINER = (
    "it belongs to the trainer's own configuration (transformers Trainer, TRL, axolotl, LLaMA-Factory); graftkit makes the"
    " model that is trained"
)
_TRAINING = "a trainer does that (transformers Trainer, TRL, axolotl, LLaMA-Factory); it takes what graftkit writes"
_QUANTIZING = (
    "bitsandbytes quantizes a model while it is loaded (load_in_4bit), GPTQModel one on disk; both come behind graftkit,"
    " which works on plain weights"
)
_SEVERAL_MODELS = "mergekit merges several models; merge_adapter folds an adapter into its base, combine_adapters makes one of several"
_GGUF = "llama.cpp's convert_hf_to_gguf.py makes GGUF files of what graftkit writes"
_ONNX = "optimum-cli export onnx (optimum-onnx) exports what graftkit writes"
_EXPORTING = f"{_GGUF}, and optimum-cli export onnx (optimum-onnx) exports it for ONNX"
_UPLOADING = "graftkit apply --push-to-hub ORG/NAME uploads the output, and so does hf upload (huggingface_hub)"
_SERVING = "vLLM, llama.cpp and transformers run models; they load what graftkit writes"
_MEASURING = "lm-evaluation-harness measures models; graftkit verify A B compares two checkpoints"

_NAMES: Mapping[str, str] = {
    _TRAINER: (
        "lr learning_rate epoch epochs num_epochs num_train_epochs max_steps batch_size train_batch_size micro_batch_size"
        " per_device_train_batch_size gradient_accumulation_steps gradient_checkpointing weight_decay warmup warmup_steps"
        " warmup_ratio optim optimizer scheduler lr_scheduler lr_scheduler_type dataset datasets train_dataset eval_dataset"
        " max_seq_length max_seq_len sequence_len packing deepspeed fsdp bf16 fp16 save_steps eval_steps logging_steps"
        " report_to early_stopping loss"
    ),
    _TRAINING: "train training trainer finetune fine_tune finetuning fine_tuning sft dpo grpo ppo distill pretrain",
    _QUANTIZING: (
        "quantize quantise quantization quantisation quantization_config quant load_in_4bit load_in_8bit bits bnb"
        " bitsandbytes gptq awq nf4 int4 int8 fp8 bnb_4bit_quant_type bnb_4bit_compute_dtype"
    ),
    _SEVERAL_MODELS: (
        "merge merge_models merge_model merge_method model_merge slerp ties dare dare_ties dare_linear model_stock"
        " task_arithmetic passthrough frankenmerge soup model_soup models slices"
    ),
    _GGUF: "gguf to_gguf export_gguf convert_gguf convert_to_gguf llama_cpp ollama",
    _ONNX: "onnx to_onnx export_onnx",
    _EXPORTING: "export",
    _UPLOADING: "push push_to_hub hub_model_id upload publish",
    _SERVING: "serve generate vllm infer inference",
    _MEASURING: "eval evaluate evaluation benchmark lm_eval",
}

#: Name -> a sentence on what does it, where that is not graftkit.
ELSEWHERE: Mapping[str, str] = {name: sentence for sentence, names in _NAMES.items() for name in names.split()}

_SYNONYMS: Mapping[str, str] = {
    "r": "rank ranks lora_r lora_rank",
    "lora_alpha": "alpha scaling",
    "lora_dropout": "dropout",
    "target_modules": "target targets modules lora_target lora_targets lora_target_modules",
    "init_lora_weights": "init_weights pissa olora eva",
    "use_dora": "dora",
    "use_rslora": "rslora rs_lora",
    "base_model": "model base model_name model_path model_name_or_path pretrained_model_name_or_path source checkpoint",
    "output": "out output_dir output_path out_dir save_dir target_dir",
    "operations": "ops operation steps",
    "special_tokens": "additional_special_tokens extra_special_tokens",
    "tokens": "words new_tokens added_tokens",
    "chat_template": "template jinja",
    "roles": "bos_token eos_token unk_token sep_token pad_token cls_token mask_token",
    "labels": "classes id2label label2id",
    "examples": "data dataset texts train_file",
    "texts": "corpus data dataset examples train_file",
    "size": "vocab_size count number",
    "extend_vocab": (
        "add_tokens add_token add_special_tokens new_tokens resize_token_embeddings resize_embeddings resize_vocab tokens"
        " pad_token chat_template tools"
    ),
    "learn_tokens": "learn_merges add_merges train_tokenizer extend_tokenizer",
    "rename_tokens": "rename_token reserved_tokens",
    "trim_vocab": "trim_tokens trim_vocabulary prune_vocab prune_tokens drop_tokens remove_tokens shrink_vocab",
    "add_lora": "lora peft dora pissa rslora qlora adapter new_adapter",
    "replace_head": "classifier classification classification_head head new_head reward reward_model",
    "convert": "dequantize dequantise dequantization unpack",
    "merge_adapter": "merge_lora merge_adapters merge_and_unload fold",
    "extract_lora": "extract extract_adapter svd",
    "resize_adapter": "resize resize_lora",
    "reinit": "reinitialize reinitialise reset reset_layers",
}


def elsewhere(name: str) -> str | None:
    """A sentence on what does what people call ``name``, where graftkit does not."""
    return ELSEWHERE.get(_plain(name))


def known_as(name: str, known: Iterable[str]) -> str | None:
    """The one of the names ``known`` that other tools call ``name``; None where there is none."""
    plain = _plain(name)
    return next((own for own in known if plain in _SYNONYMS.get(own, "").split()), None)


def _plain(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").lower()
