"""The generation settings of a Hugging Face folder.

`generation_config.json` holds them, or `config.json` in older folders. Culm reads the ends from
them, and the tokens that are never generated. The others (temperature, top_p, ...) are kept as they
are for an export.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.files import read_json
from culm.log import say

GENERATION, MODEL = "generation_config.json", "config.json"

# What transformers takes as a generation setting from a config.json.
_NAMES = """
max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample
num_beams use_mtp use_cache cache_implementation cache_config max_cache_len temperature top_k top_p
min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty
length_penalty no_repeat_ngram_size bad_words_ids renormalize_logits forced_bos_token_id
forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
begin_suppress_tokens sequence_bias token_healing guidance_scale watermarking_config
num_return_sequences output_attentions output_hidden_states output_scores output_logits
return_dict_in_generate pad_token_id bos_token_id eos_token_id encoder_no_repeat_ngram_size
decoder_start_token_id is_assistant num_assistant_tokens num_assistant_tokens_schedule
assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size
assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight
speculation_type compile_config disable_compile continuous_batching_config low_memory
penalty_alpha dola_layers diversity_penalty num_beam_groups constraints force_words_ids
prefill_chunk_size
"""
NAMES = frozenset(_NAMES.split())
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SUPPRESSED = "suppress_tokens"
# Settings that change what transformers generates, whoever asks and however it samples.
ALWAYS = (
    "begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id",
    "min_length", "min_new_tokens", "no_repeat_ngram_size", "sequence_bias", "guidance_scale",
    "exponential_decay_length_penalty", "encoder_repetition_penalty", "stop_strings",
    "watermarking_config", "token_healing",
)  # fmt: skip
OFF: tuple[Any, ...] = (None, False, 0, 1, [], {})


def read_generation(folder: Path) -> dict[str, Any]:
    """The generation settings of a folder; empty if it has none.

    Ids of tokens that `generation_config.json` does not name come from `config.json`, the others
    only if there is no `generation_config.json`, as in transformers.
    """
    given, older = (
        read_json(folder / name) if (folder / name).is_file() else None
        for name in (GENERATION, MODEL)
    )
    names = NAMES if given is None else frozenset(IDS)
    found = {key: value for key, value in (older or {}).items() if key in names}
    found |= {key: value for key, value in (given or {}).items() if value is not None}
    ours = (key for key in found if key != "transformers_version" and not key.startswith("_"))
    settings = {key: found[key] for key in ours if found[key] is not None}
    if unused := [key for key in ALWAYS if settings.get(key) not in OFF]:
        say(f"{folder}: {', '.join(unused)}: not applied here, kept for an export.")
    return settings


def suppressed_tokens(generation: Mapping[str, Any], vocabulary: int) -> tuple[int, ...]:
    """Ids that are never generated, however the tokens are chosen.

    Raises:
        SettingError: the setting lists something other than ids.
    """
    given = generation.get(SUPPRESSED) or []
    if not isinstance(given, list) or any(type(id) is not int or id < 0 for id in given):
        raise SettingError(f"{SUPPRESSED}: {given!r} is not a list of ids; remove it")
    return tuple(sorted({id for id in given if id < vocabulary}))
