"""A small config of any transformers config class: the defaults, with every number shrunk by what its name says it counts.

There is no table of architectures. A name says what a number counts (`hidden_size`, `num_experts`, `image_token_id`) and a
:class:`Scale` says how small that may become. Which scale a model's code can live with only the code knows, so whoever
builds a model tries :data:`SCALES` in turn.
"""

import re
from dataclasses import MISSING, dataclass, field, fields, replace

#: Sizes of the vocabularies beside the text's. Primes, so that a table taken for another is seen by its shape.
OTHER_VOCABULARIES = (337, 347, 349, 353, 359, 367, 373, 379, 383, 389, 397, 401)


@dataclass(frozen=True)
class Scale:
    """How small a model is made, and how what its config derives is treated.

    With ``derive``, values that a config computes from others are left to it; without, they are shrunk like the rest.
    With ``fill``, sizes that the defaults leave open are given.
    """

    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    layers: int = 2
    ffn: int = 96
    experts: int = 4
    positions: int = 128
    window: int = 16
    patches: int = 4
    codes: int = 256  # some codecs want a power of two
    channels: int = 32  # convolutions with groups of 32
    derive: bool = False
    fill: bool = False

    @property
    def head(self):
        return self.hidden // self.heads


_PLAIN = (
    Scale(),
    Scale(layers=4),
    Scale(kv_heads=4, ffn=64),
    Scale(kv_heads=4, ffn=128, layers=4, experts=8),
    Scale(hidden=128, heads=8, kv_heads=8, layers=4, ffn=128, experts=8, patches=8),
    Scale(kv_heads=1, layers=8),
)
SCALES = tuple(replace(scale, derive=derive, fill=fill)
               for derive, fill in ((False, False), (True, False), (False, True), (True, True)) for scale in _PLAIN)  # fmt: skip

#: (pattern of the name, what it counts); the first that is found in the name decides, and a name without any is left alone.
MEANINGS = tuple(
    (re.compile(pattern), meaning)
    for pattern, meaning in (
        (r"^type_vocab|task_type_vocab|_langs$|_epsilon|kernel|stride|_start_index|_end_index|insert_layer|num_labels|acoustic_tok", "as it is"),
        (r"kv_shared_layers$", "none"),
        (r"codebook_size$|^num_codes$", "codes"),
        (r"_feature_layers?$|_layer_indices$|_indexes$|_layer_ids$|target_layers$|_vision_layer$|_source_layers$", "layer"),
        (r"base_channels$", "channels"),
        (r"_d_ssm$", "inner"),
        (r"vocab_size$|vocab_size_per|num_embeddings$|byte_group_vocab$|vocab_size_base$", "vocabulary"),
        (r"token_id$|token_index$|^(pad|bos|eos|unk|mask)_index$|^image_patch_id$|^im_\w+_id$", "token"),
        (r"key_value_heads|kv_n_heads|kv_heads|query_groups", "kv_heads"),
        (r"^n_heads?$|_heads$|attention_heads$|^attention_heads", "heads"),
        (r"head_dim|^d_kv|^d_head|dim_head|head_size$|headdim$|d_head$|kv_channels|^rotary_dim$|head_ch_dim", "head"),
        (r"lora_rank$|state_size$|d_state$|time_step_rank$|dt_rank$|_rank$|^d_rel$|lowrank$", "head"),
        (r"intermediate_size|ffn_dim$|ffn_hidden|feed_forward_size|^d_ff$|^dff$|dim_ff$|mlp_dim$|d_inner|expert_dim$", "ffn"),
        (r"^layers$|(num|encoder|decoder|n|speech|t2u|adapter|lstm|hidden|mtp)_layers?$|^depth$|_depth$|num_blocks$|n_layer", "layers"),
        (r"experts_per_tok|moe_top_?k$|moe_k$|^top_k|topk_group$|^n_group$|expert_group$", "few"),
        (r"^num_filters$", "few"),
        (r"n_shared_experts|num_shared_experts|moe_num_shared", "few"),
        (r"num_experts$|local_experts$|routed_experts$|zero_expert_num", "experts"),
        (r"position_embeddings$|_positions$|max_(seq|source|target)_|^n_ctx$|model_max_length|context_length|rel_extent", "positions"),
        (r"sliding_window$|sliding_window_size$|attention_window|chunk_size$|^window_size$|^local_attention$|attn_chunk_length|index_topk", "window"),
        (r"^image_size$|max_image_size|crop_size$|^resolution$|^img_size$|max_img_size", "image"),
        (r"hidden_size|^d_model$|^n_embd$|embed_dim$|embedding_size$|emb_dim$|embedding_dim$|emb_size$|^dim$|hidden_dim$"
         r"|_width$|proj_dim$|projection_dim|projection_size|out_dim$|output_dim$|input_dim$|in_dim$|input_size$"
         r"|output_channels$|base_channels|latent_channels|adapter_input|mid_dim$|latents$|out_channels$|lru_width|downsample_channels", "hidden"),
    )
)  # fmt: skip


#: Ids that every config gets, in step with the tokenizer.
ROLES = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

#: What is given a size when the defaults leave it open and ``fill`` is on.
FILLED = ("vocabulary", "experts", "few", "window", "kv_heads")

#: What names cannot tell, by config class or model class, each with its reason.
HINTS = {
    "BambaConfig": {"attn_layer_indices": [1]},  # without an attention layer the cache cannot count tokens
    "GraniteMoeHybridConfig": {"layer_types": ["linear_attention", "full_attention"]},  # the same
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},  # no default
    "DeepseekOcr2TextConfig": {"mlp_layer_types": ["dense", "sparse"]},  # no default
    "Granite4VisionConfig": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "2/4"},  # no default
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},  # a nested pattern, times the layers
    "CohereCompassTextConfig": {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0}
                                for kind in ("full_attention", "sliding_attention")}},  # no default
    "DbrxConfig": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},  # no default
    "ReformerConfig": {"axial_pos_shape": (8, 16), "axial_pos_embds_dim": (32, 32)},  # factors of positions and width
    "ReformerModelWithLMHead": {"is_decoder": True},  # the class demands it
    "Qwen4ExpTextConfig": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
                           "indexer_compress_ratio": 4},  # no default
    "DiffusionGemmaTextConfig": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96},  # no default
    "Qwen2_5OmniThinkerConfig": {"vision_start_token_id": 8},  # no default
    "Qwen3OmniMoeThinkerConfig": {"vision_start_token_id": 8},  # no default
    "XmodConfig": {"default_language": "en_XX"},  # no default, and the forward demands it
    "ChameleonConfig": {"vocabulary_map": {"<image>": 8}},  # no default
    "Blip2Config": {"image_token_index": 8},  # no default, and the forward compares ids with it
    "InstructBlipConfig": {"image_token_index": 8},  # the same
    "InstructBlipVideoConfig": {"video_token_index": 8},  # the same
    "MobileBertConfig": {"embedding_size": 32},  # less than the hidden size, as in every checkpoint
    "PPFormulaNetVisionConfig": {"post_conv_in_channels": 64, "post_conv_mid_channels": 64,
                                 "post_conv_out_channels": 64},  # in step with output_channels
    "Nemotron3_5TranscribeAsrAudioConfig": {"num_key_value_heads": 4},  # split from one tensor into three equal parts
    "Nemotron3DiarizationAudioConfig": {"num_key_value_heads": 4},  # the same
    "Nemotron3_5TranscribeWordTimestampConfig": {"num_key_value_heads": 4},  # the same
    "Dots3NoteTextConfig": {"num_key_value_heads": 4, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
                            "swa_head_dim": 32, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16, "swa_q_lora_rank": 16,
                            "swa_kv_lora_rank": 16},  # aliases that no default shows
    "Gemma4UnifiedAssistantConfig": {"text_config": {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2}},
    "FastVlmConfig": {"vision_config": {"model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 96,
                                        "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
                                        "patch_size": 8}},  # takes any tower; its default one needs timm
    "Emu3Config": {"vocabulary_map": {"<image>": 8, "<|extra_200|>": 9}},  # no default
}  # fmt: skip


@dataclass
class _Walk:
    """What a walk over one config keeps in mind: equal vocabularies stay equal and different ones different.

    With ``distinct``, equal ones stay equal only within one sub-config; ``text`` is the one that has ``vocab_size``.
    """

    scale: Scale
    vocab_size: int
    live: int
    text: object = None
    distinct: bool = False
    vocabularies: dict = field(default_factory=dict)
    tokens: dict = field(default_factory=dict)

    def vocabulary(self, size, config):
        key = (size, id(config)) if self.distinct else size
        if key not in self.vocabularies:
            taken = len(self.vocabularies)
            self.vocabularies[key] = OTHER_VOCABULARIES[taken - 1] if taken else self.vocab_size
        return self.vocabularies[key]

    def token(self, name):
        for role, index in (("pad", 0), ("bos", 1), ("eos", 2), ("unk", 3), ("decoder_start", 1)):
            if re.fullmatch(rf"(forced_)?{role}_(token_id|index|token_index)", name):
                return index
        return self.tokens.setdefault(name, self.live - 1 - len(self.tokens))


def tiny_config(
    config_class, *, vocab_size=331, live=None, scale=SCALES[0], overrides=None, hints=None, distinct=False
):
    """Return a small instance of ``config_class``; ids of special tokens are below ``live``, by default 8 under ``vocab_size``."""
    try:
        default = config_class()
    except Exception as error:
        raise ValueError(f"transformers refuses the class's own default config: {error}") from error
    text = default.get_text_config()
    walk = _Walk(scale, vocab_size, live or vocab_size - 8, text, distinct)
    walk.vocabulary(getattr(text, "vocab_size", None), text)
    arguments = _merged(_shrunk(default, walk), hints or {})
    return config_class(**_merged(arguments, overrides or {}))


def _merged(arguments, overrides):
    nested = {name: _merged(arguments[name], value) for name, value in overrides.items()
              if isinstance(value, dict) and isinstance(arguments.get(name), dict)}  # fmt: skip
    return {**arguments, **overrides, **nested}


def _shrunk(config, walk):
    """The arguments that make ``config`` anew, small."""
    arguments = {"model_type": config.model_type}
    defaults = _defaults(config)
    for name, default in defaults.items():
        stored = config.attribute_map.get(name, name)
        if stored not in vars(config) or (stored != name and stored in defaults):  # another name of an argument
            continue
        value = vars(config)[stored]  # getattr refuses what differs between layers
        if hasattr(value, "model_type"):
            arguments[name] = _shrunk(value, walk)
        elif default is None and value is not None and walk.scale.derive and not _is_token(name):
            continue
        else:
            small = _small(name, value, config, walk)
            if small != default:
                arguments[name] = small
    return _merged(arguments, HINTS.get(type(config).__name__, {}))


def _defaults(config):
    """Each argument that the config's class takes, with its default."""
    return {f.name: f.default if f.default is not MISSING else f.default_factory() if f.default_factory is not MISSING else ...
            for f in fields(config) if not f.name.startswith("_")}  # fmt: skip


def _meaning(name):
    return next((meaning for pattern, meaning in MEANINGS if pattern.search(name)), "as it is")


def _is_token(name):
    return _meaning(name) in ("token", "vocabulary")


def _small(name, value, config, walk):
    meaning = _meaning(name)
    if value is None and meaning == "vocabulary" and getattr(walk.text, "vocab_size", None) is None:
        return walk.vocab_size
    if value is None and (name in ROLES or (walk.scale.fill and (name == "head_dim" or meaning in FILLED))):
        value = 1 << 20
    if isinstance(value, int) and not isinstance(value, bool):
        return _number(name, value, meaning, config, walk)
    if isinstance(value, list | tuple) and value:
        return _sequence(name, value, meaning, config, walk)
    if isinstance(value, dict) and name.startswith("rope"):
        return _rope(value, config, walk)
    return value


def _sequence(name, value, meaning, config, walk):
    depths = {
        getattr(config, n) for n in vars(config) if _meaning(n) == "layers" and isinstance(getattr(config, n), int)
    }
    if len(value) in depths and len(value) > walk.scale.layers:
        value = type(value)(_one_of_each(value, walk.scale.layers))
    if all(type(item) is int for item in value):
        return type(value)(_number(name, item, meaning, config, walk) for item in value)
    return value


def _one_of_each(items, count):
    """``count`` of ``items`` in their order: the last, one of each other kind while there is room, then the first ones."""
    firsts = [index for index, item in enumerate(items) if items.index(item) == index and item != items[-1]]
    order = dict.fromkeys([len(items) - 1, *firsts, *range(len(items))])
    return [items[index] for index in sorted(list(order)[:count])]


def _rope(value, config, walk):
    """Rotary parameters whose sections of frequencies add up to half of the rotated part of a head."""
    nested = {key: _rope(item, config, walk) for key, item in value.items() if isinstance(item, dict)}
    section = value.get("mrope_section", [3, 3, 2] if walk.scale.fill and not nested else None)
    if section is None:
        return {**value, **nested}
    half = int(walk.scale.head * value.get("partial_rotary_factor", 1)) // 2
    small = [max(half * item // sum(section), 1) for item in section]
    small[-1] += half - sum(small)
    return {**value, **nested, "mrope_section": small}


def _number(name, value, meaning, config, walk):
    if meaning == "as it is" or (value <= 0 and meaning != "token"):
        return value
    if meaning == "vocabulary":
        return walk.vocabulary(value, config)
    if meaning == "token":
        return walk.token(name)
    if meaning == "image":
        patch = getattr(config, "patch_size", None)
        return (patch if isinstance(patch, int) else 8) * walk.scale.patches
    if meaning == "heads" and "attention" not in name:
        return walk.scale.heads * getattr(config, "expand", getattr(config, "mamba_expand", 1))
    if meaning == "none":
        return 0
    if meaning == "inner":
        return _number("", 1 << 20, "heads", config, walk) * min(
            getattr(config, "mamba_d_head", 1 << 20), walk.scale.head
        )
    if meaning == "layer":
        return min(value, walk.scale.layers - 1)
    return min(value, 2 if meaning == "few" else getattr(walk.scale, meaning))
