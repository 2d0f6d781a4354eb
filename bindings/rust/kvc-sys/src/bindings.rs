// SPDX-License-Identifier: MIT
//! What `tests/layout.rs` reads: it knows `pub const`, `pub struct`, `pub union` and `pub fn` in the
//! form below, one member and one argument as `name: type`.

use std::os::raw::{c_char, c_void};

// ------------------------------------------------------------------ status and version

pub const KVC_OK: i32 = 0;
pub const KVC_E_NOMEM: i32 = -1;
pub const KVC_E_ARG: i32 = -2;
pub const KVC_E_RANGE: i32 = -3;
pub const KVC_E_PARAM: i32 = -4;
pub const KVC_E_SPEC: i32 = -5;
pub const KVC_E_IO: i32 = -6;
pub const KVC_E_NOT_FOUND: i32 = -7;
pub const KVC_E_FORMAT: i32 = -8;
pub const KVC_E_UNSUPPORTED: i32 = -9;
pub const KVC_E_FULL: i32 = -10;
pub const KVC_E_BUSY: i32 = -11;
pub const KVC_E_CANCELLED: i32 = -12;
pub const KVC_E_DEAD: i32 = -13;
pub const KVC_E_POLICY: i32 = -14;
pub const KVC_E_CONFLICT: i32 = -15;
pub const KVC_E_LOST: i32 = -16;
pub const KVC_E_UTF8: i32 = -17;
pub const KVC_E_LOAD_FILE: i32 = -32;
pub const KVC_E_LOAD_OPEN: i32 = -33;
pub const KVC_E_LOAD_SYMBOL: i32 = -34;
pub const KVC_E_LOAD_ABI: i32 = -35;
pub const KVC_E_LOAD_TABLE: i32 = -36;
pub const KVC_E_LOAD_NAME: i32 = -37;
pub const KVC_E_LOAD_PARAMS: i32 = -38;
pub const KVC_E_LOAD_REQUIRES: i32 = -39;

extern "C" {
    pub fn kvc_status_name(status: i32) -> *const c_char;
    pub fn kvc_status_text(status: i32) -> *const c_char;
    pub fn kvc_version() -> *const c_char;
    pub fn kvc_cpu_level() -> *const c_char;
}

// ------------------------------------------------------------------ handles

#[repr(C)]
pub struct kvc_params {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct kvc_model {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct kvc_session {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct kvc_sampler {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct kvc_policies {
    _opaque: [u8; 0],
}

/// What a policy's entry answers; its body is for policies.
#[repr(C)]
pub struct kvc_policy {
    _opaque: [u8; 0],
}

// ------------------------------------------------------------------ params

pub type kvc_realloc_fn = Option<
    unsafe extern "C" fn(
        ctx: *mut c_void,
        p: *mut c_void,
        old_size: usize,
        new_size: usize,
        align: usize,
    ) -> *mut c_void,
>;
pub type kvc_log_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, level: u32, text: *const c_char)>;
pub type kvc_entry_fn =
    Option<unsafe extern "C" fn(host_abi: u32, index: u32) -> *const kvc_policy>;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_allocator {
    pub struct_size: u32,
    pub pad: u32,
    pub ctx: *mut c_void,
    pub realloc: kvc_realloc_fn,
}

extern "C" {
    pub fn kvc_params_create(out: *mut *mut kvc_params) -> i32;
    pub fn kvc_params_destroy(params: *mut kvc_params);
    pub fn kvc_params_set_i64(params: *mut kvc_params, name: *const c_char, value: i64) -> i32;
    pub fn kvc_params_set_f64(params: *mut kvc_params, name: *const c_char, value: f64) -> i32;
    pub fn kvc_params_set_str(
        params: *mut kvc_params,
        name: *const c_char,
        value: *const c_char,
    ) -> i32;
    pub fn kvc_params_set_allocator(
        params: *mut kvc_params,
        allocator: *const kvc_allocator,
    ) -> i32;
    pub fn kvc_params_set_log(params: *mut kvc_params, log: kvc_log_fn, user: *mut c_void) -> i32;
    pub fn kvc_params_add_policy_dir(params: *mut kvc_params, dir: *const c_char) -> i32;
    pub fn kvc_params_add_policy(params: *mut kvc_params, entry: kvc_entry_fn) -> i32;
    pub fn kvc_params_error(params: *const kvc_params) -> *const c_char;
}

// ------------------------------------------------------------------ model

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_model_info {
    pub struct_size: u32,
    pub n_layer: u32,
    pub n_embd: u32,
    pub n_vocab: u32,
    pub n_ctx_train: u32,
    pub n_head: u32,
    pub n_head_kv: u32,
    pub head_dim: u32,
    pub n_threads: u32,
    pub token_bos: i32,
    pub token_eos: i32,
    pub token_eot: i32,
    pub n_param: u64,
    pub file_bytes: u64,
    pub arch: *const c_char,
    pub name: *const c_char,
    pub weights: *const c_char,
    pub fingerprint: *const c_char,
    pub read_bytes: u64,
    pub n_mac: u64,
    pub chat: *const c_char,
}

pub const KVC_TEXT_SPECIAL: u32 = 1;
pub const KVC_TEXT_BOS: u32 = 2;
pub const KVC_TEXT_EOS: u32 = 4;
pub const KVC_TEXT_TRIM: u32 = 8;
pub const KVC_CHAT_PROMPT: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_chat_message {
    pub role: *const c_char,
    pub content: *const c_char,
    pub n_content: usize,
}

extern "C" {
    pub fn kvc_model_open(
        path: *const c_char,
        params: *mut kvc_params,
        out: *mut *mut kvc_model,
    ) -> i32;
    pub fn kvc_model_open_memory(
        bytes: *const c_void,
        n: usize,
        params: *mut kvc_params,
        out: *mut *mut kvc_model,
    ) -> i32;
    pub fn kvc_model_close(model: *mut kvc_model);
    pub fn kvc_model_get_info(model: *const kvc_model, out: *mut kvc_model_info) -> i32;
    pub fn kvc_model_error(model: *const kvc_model) -> *const c_char;
    pub fn kvc_model_tokenize(
        model: *mut kvc_model,
        text: *const c_char,
        n: usize,
        flags: u32,
        out: *mut i32,
        cap: usize,
        n_out: *mut usize,
    ) -> i32;
    pub fn kvc_model_detokenize(
        model: *mut kvc_model,
        token: *const i32,
        n: usize,
        flags: u32,
        out: *mut c_char,
        cap: usize,
        n_out: *mut usize,
    ) -> i32;
    pub fn kvc_model_is_end(model: *const kvc_model, token: i32) -> u32;
    pub fn kvc_model_chat(
        model: *mut kvc_model,
        family: *const c_char,
        message: *const kvc_chat_message,
        n: u32,
        stride: u32,
        flags: u32,
        out: *mut i32,
        cap: usize,
        n_out: *mut usize,
    ) -> i32;
}

// ------------------------------------------------------------------ session

pub const KVC_WANT_LAST: u32 = 0;
pub const KVC_WANT_NONE: u32 = 1;
pub const KVC_WANT_ALL: u32 = 2;
pub const KVC_WANT_LIST: u32 = 3;
pub const KVC_COMPUTE_INT8: u32 = 0;
pub const KVC_COMPUTE_F32: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_run {
    pub struct_size: u32,
    pub wants: u32,
    pub session: *mut kvc_session,
    pub token: *const i32,
    pub want: *const u8,
    pub n_token: u32,
    pub prompt_end: u32,
    pub status: i32,
    pub n_logits: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_session_stats {
    pub struct_size: u32,
    pub n_past: u32,
    pub n_ctx: u32,
    pub n_stage: u32,
    pub kv_bytes: u64,
    pub sealed_bytes: u64,
    pub open_bytes: u64,
    pub meta_bytes: u64,
    pub column_bytes: u64,
    pub stage_bytes: u64,
    pub disk_bytes: u64,
    pub kv_peak_bytes: u64,
    pub n_computed: u64,
    pub n_replayed: u64,
    pub n_entry: u64,
    pub compute_ns: u64,
    pub attention_ns: u64,
    pub policy_ns: u64,
    pub chunk_invariant: u32,
    pub flags: u32,
    pub buffer_bytes: u64,
    pub tier_bytes: u64,
    pub n_lost: u64,
    pub wait_ns: u64,
    pub compute: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_stage_stats {
    pub struct_size: u32,
    pub pad: u32,
    pub name: *const c_char,
    pub path: *const c_char,
    pub memory_bytes: u64,
    pub peak_bytes: u64,
    pub disk_bytes: u64,
    pub hook_ns: u64,
    pub n_evicted: u64,
    pub n_selected: u64,
    pub n_skipped: u64,
    pub stored_bytes: u64,
    pub tier_ns: u64,
    pub n_put: u64,
    pub n_get: u64,
    pub worker_ns: u64,
    pub payload_bytes: u64,
}

extern "C" {
    pub fn kvc_session_open(
        model: *mut kvc_model,
        spec: *const c_char,
        params: *mut kvc_params,
        out: *mut *mut kvc_session,
    ) -> i32;
    pub fn kvc_session_close(session: *mut kvc_session);
    pub fn kvc_session_fork(session: *mut kvc_session, out: *mut *mut kvc_session) -> i32;
    pub fn kvc_session_save(session: *mut kvc_session, path: *const c_char) -> i32;
    pub fn kvc_session_load(
        model: *mut kvc_model,
        path: *const c_char,
        params: *mut kvc_params,
        out: *mut *mut kvc_session,
    ) -> i32;
    pub fn kvc_decode(run: *mut kvc_run, n: u32, stride: u32) -> i32;
    pub fn kvc_session_decode(session: *mut kvc_session, token: *const i32, n: u32) -> i32;
    pub fn kvc_session_prefill(session: *mut kvc_session, token: *const i32, n: u32) -> i32;
    pub fn kvc_session_logits(session: *const kvc_session, i: u32) -> *const f32;
    pub fn kvc_session_n_past(session: *const kvc_session) -> u32;
    pub fn kvc_session_tokens(session: *const kvc_session, pos: u32, n: u32, out: *mut i32) -> i32;
    pub fn kvc_session_truncate(session: *mut kvc_session, n_past: u32) -> i32;
    pub fn kvc_session_cancel(session: *mut kvc_session);
    pub fn kvc_session_error(session: *const kvc_session) -> *const c_char;
    pub fn kvc_session_get_stats(session: *const kvc_session, out: *mut kvc_session_stats) -> i32;
    pub fn kvc_session_spec(session: *const kvc_session) -> *const c_char;
    pub fn kvc_session_get_stage(
        session: *const kvc_session,
        i: u32,
        out: *mut kvc_stage_stats,
    ) -> i32;
}

// ------------------------------------------------------------------ sampler

extern "C" {
    pub fn kvc_sampler_create(params: *mut kvc_params, out: *mut *mut kvc_sampler) -> i32;
    pub fn kvc_sampler_destroy(sampler: *mut kvc_sampler);
    pub fn kvc_sampler_sample(sampler: *mut kvc_sampler, logits: *const f32, n_vocab: u32) -> i32;
}

// ------------------------------------------------------------------ policies that can be loaded

pub const KVC_PARAM_INT: u32 = 1;
pub const KVC_PARAM_FLOAT: u32 = 2;
pub const KVC_PARAM_BOOL: u32 = 3;
pub const KVC_PARAM_ENUM: u32 = 4;
pub const KVC_PARAM_SIZE: u32 = 5;
pub const KVC_PARAM_STRING: u32 = 6;
pub const KVC_PARAM_BUDGET: u32 = 7;

#[repr(C)]
#[derive(Clone, Copy)]
pub union kvc_value {
    pub i: i64,
    pub f: f64,
    pub s: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvc_param {
    pub struct_size: u32,
    pub r#type: u32,
    pub name: *const c_char,
    pub unit: *const c_char,
    pub help: *const c_char,
    pub choice: *const *const c_char,
    pub def: kvc_value,
    pub min: kvc_value,
    pub max: kvc_value,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_policy_info {
    pub struct_size: u32,
    pub status: i32,
    pub name: *const c_char,
    pub path: *const c_char,
    pub version: *const c_char,
    pub summary: *const c_char,
    pub license: *const c_char,
    pub error: *const c_char,
    pub caps: u64,
    pub abi: u32,
    pub n_param: u32,
}

extern "C" {
    pub fn kvc_policies_open(params: *mut kvc_params, out: *mut *mut kvc_policies) -> i32;
    pub fn kvc_policies_close(list: *mut kvc_policies);
    pub fn kvc_policies_count(list: *const kvc_policies) -> u32;
    pub fn kvc_policies_get(list: *const kvc_policies, i: u32, out: *mut kvc_policy_info) -> i32;
    pub fn kvc_policies_param(
        list: *const kvc_policies,
        i: u32,
        param: u32,
        out: *mut *const kvc_param,
    ) -> i32;
    pub fn kvc_policies_path(list: *const kvc_policies) -> *const c_char;
}
