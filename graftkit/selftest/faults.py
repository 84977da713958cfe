"""Every fault that is planted into copies. A new check enters with its fault: one entry here."""

from __future__ import annotations

from graftkit.selftest import files, growth, settings, tokens, weights
from graftkit.selftest.fault import BYTES, CONFIG, LOADING, OUTPUTS, TOKENIZER, Fault
from graftkit.selftest.settings import changed
from graftkit.selftest.subject import Subject

FAULTS: tuple[Fault[Subject], ...] = (
    Fault("ulp flip in a weight", Subject.weight, weights.flip_an_ulp, (BYTES,)),
    Fault("ulp flip in a norm", Subject.norm, weights.flip_an_ulp, (BYTES,)),
    Fault("ulp flip in the input table", Subject.table, weights.flip_an_ulp, (BYTES,)),
    Fault("swapped rows", Subject.table, weights.swap_rows, (BYTES, OUTPUTS)),
    Fault("swapped output rows", Subject.head, weights.swap_rows, (BYTES, OUTPUTS)),
    Fault("transposed weight", Subject.square_weight, weights.transpose, (BYTES, OUTPUTS)),
    Fault("exchanged weights", Subject.twin_weights, weights.exchange, (BYTES, OUTPUTS)),
    Fault("zeroed page", Subject.weight, weights.blank, (BYTES, OUTPUTS)),
    Fault("zeroed bias", Subject.bias, weights.zero, (BYTES, OUTPUTS)),
    Fault("dropped bias", Subject.bias, weights.drop, (LOADING,)),
    Fault("NaN in k_proj", Subject.key_weight, weights.not_a_number, (BYTES,)),
    Fault("re-tied head", weights.untied_head, weights.tie_again, (BYTES, OUTPUTS)),
    Fault("zero-padded tied bias", growth.bias, growth.grow_with_zero_bias, (BYTES,)),
    Fault("new row overwritten", growth.output_table, growth.grow_with_a_wild_row, (BYTES, OUTPUTS)),
    Fault("tables untied though equal", weights.tied_pair, weights.store_apart, (BYTES, CONFIG)),
    Fault("dtype changed in a header", weights.two_byte_weight, weights.other_dtype, (BYTES, OUTPUTS)),
    Fault("tensor missing", Subject.weight, weights.drop, (LOADING,)),
    Fault("tensor renamed", Subject.weight, weights.rename, (LOADING,)),
    Fault("stale shard", Subject.weight, weights.stale_beside_index, (BYTES, OUTPUTS)),
    Fault("file truncated", files.last_shard, files.truncate, (LOADING,)),
    Fault("index points to the wrong shard", files.index, files.wrong_shard, (LOADING,)),
    Fault("tensor in two shards", files.index, files.two_homes, (LOADING,)),
    Fault("wrong eps", settings.epsilon, changed(lambda old: max(1e3 * old, 1e-3)), (CONFIG, OUTPUTS)),
    Fault("changed rope_theta", settings.rope_theta, changed(lambda old: 4 * old), (CONFIG,)),
    Fault(
        "other activation",
        settings.activation,
        changed(lambda old: "relu" if old != "relu" else "silu"),
        (CONFIG, OUTPUTS),
    ),
    Fault("other number of heads", settings.heads, changed(lambda old: old // 2), (CONFIG, OUTPUTS)),
    Fault("layer left out", settings.layers, changed(lambda old: old - 1), (LOADING,)),
    Fault("layer_types off by one", settings.layer_types, changed(lambda old: old[:-1]), (CONFIG,)),
    Fault("changed dropout", settings.dropout, changed(lambda old: old + 0.25), (CONFIG,)),
    Fault(
        "dtype changed in config",
        settings.dtype,
        changed(lambda old: "float32" if old == "bfloat16" else "bfloat16"),
        (CONFIG, OUTPUTS),
    ),
    Fault("tie flag turned", settings.tie, changed(lambda old: not old), (CONFIG,)),
    Fault("other class", settings.other_class, settings.set_class, (CONFIG, OUTPUTS)),
    Fault("wrong pad id", settings.pad_id, changed(lambda old: 5 if old is None else old + 1), (CONFIG,)),
    Fault("other generation setting", settings.generation, settings.set_generation, (CONFIG,)),
    Fault("wrong id for a role", settings.generation_eos, settings.set_generation_eos, (CONFIG, TOKENIZER)),
    Fault("role moved to another token", tokens.role, tokens.move_role, (CONFIG,)),
    Fault("lost generation_config", files.generation, files.lose, (TOKENIZER,)),
    Fault("changed merges", tokens.merge, tokens.drop_merge, (TOKENIZER,)),
    Fault("changed normalizer", tokens.normalizer, tokens.other_normalizer, (TOKENIZER,)),
    Fault("ids swapped in the vocabulary", tokens.two_entries, tokens.swap_entries, (TOKENIZER,)),
    Fault("dropped added token", tokens.added_token, tokens.drop_added, (TOKENIZER,)),
    Fault("one more token around a text", tokens.framed_by, tokens.frame, (TOKENIZER,)),
    Fault("other padding side", tokens.side, tokens.other_side, (TOKENIZER,)),
    Fault("lost chat template", tokens.template, tokens.lose_template, (TOKENIZER,)),
    Fault("chat template that is a file's name", tokens.template_file, tokens.name_of_a_template, (TOKENIZER,)),
    Fault("pad token that is eos", tokens.pad_of_its_own, tokens.pad_with_eos, (TOKENIZER,)),
    Fault("lost tokenizer", files.tokenizer, files.lose, (LOADING,)),
    Fault("changed pooling", files.pooling, files.other_pooling, (CONFIG,)),
)
