# SPDX-License-Identifier: MIT
# Breaks that broken.c knows, of tiers broken_tier.c, and such that show late broken_deep.c, of page
# formats broken_codec.c: each becomes b_<case>.so, compiled with -DBROKEN_<CASE>. What kvcheck finds in each stands in tests/cli/kvcheck.sh.
set(KVC_BROKEN_CASES
    abi_min abi_new abi_old append_fails begin_fails begin_high
    begin_negative begin_nomem codec_decode codec_encode codec_move codec_page0
    codec_nan codec_page_bytes codec_page_huge codec_size create_code create_fails create_mute
    create_nomem decode_fails encode_fails end_fails endless keep_in_begin
    deep_accepts deep_bounded deep_chunks deep_code deep_constructor deep_crashes
    deep_codec_bytes_differ deep_codec_bytes_grow deep_codec_decode_far deep_codec_decode_nan
    deep_codec_decode_over deep_codec_decode_part deep_codec_decode_writes deep_codec_encode_over
    deep_codec_encode_stride deep_codec_fields_beyond deep_codec_fields_kind deep_codec_fields_many
    deep_codec_fields_overlap deep_codec_fields_size deep_codec_fields_stride deep_codec_instance
    deep_codec_mix_last deep_codec_mix_nan deep_codec_mix_over deep_codec_mix_sets
    deep_codec_move_fails deep_codec_move_keys deep_codec_move_nothing deep_codec_move_over
    deep_codec_move_scale deep_codec_move_takes deep_codec_score_half deep_codec_score_over
    deep_codec_score_part deep_codec_score_rows deep_codec_sound
    deep_entries deep_exits deep_exports deep_fork deep_global deep_links deep_load
    deep_lossless deep_lost deep_malloc deep_mute deep_nomem deep_overrun deep_pair deep_prints
    deep_repeat deep_shapes deep_size deep_sound deep_threads deep_truncate deep_unsaved
    hangs keep_order keep_range keep_unsaid leaks name_bad name_long name_null
    name_other no_api no_create no_summary no_symbol nothing
    null_table page_end_fails param_bool param_choice param_choice_def param_choice_null
    param_def param_help param_inf param_many param_name param_name_null
    param_nan param_null param_size param_stride param_twice param_type
    plan_answers plan_answers_bits plan_cache_evicts plan_columns plan_observe plan_positions
    plan_quantum plan_type plan_unsaid plan_where requires rewind_high
    select_fails size_api size_small size_tiny
    tier_format tier_get_code tier_get_nowhere tier_get_odd tier_get_outside tier_get_short
    tier_get_unnamed tier_hook tier_hot tier_no_drop tier_no_get
    tier_no_put tier_open_fails tier_put_code tier_record0
    tier_record_huge tier_record_short tier_size tier_unpack_code tier_unsaid two visible_future
    visible_many visible_none visible_order)
