// SPDX-License-Identifier: MIT
//! Models: weights, vocabulary and threads. A model is shared by its clones, its sessions and its
//! text streams; calls on it take turns, so that it may be used from any thread.

use crate::error::{c_path, check, string, Result};
use crate::{Params, TextStream, Token};
use kvc_sys as sys;
use std::fmt;
use std::mem::{size_of, zeroed};
use std::ops::BitOr;
use std::os::raw::c_char;
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

/// How text becomes tokens, and tokens text; combined by `|`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextFlags(u32);

impl TextFlags {
    /// Special tokens are neither read nor written.
    pub const PLAIN: Self = Self(0);
    /// Text such as `<|im_end|>` is the special token; and such tokens are written.
    pub const SPECIAL: Self = Self(sys::KVC_TEXT_SPECIAL);
    /// Begin with the beginning-of-text token if the model wants one.
    pub const BOS: Self = Self(sys::KVC_TEXT_BOS);
    /// End with the end-of-text token if the model wants one.
    pub const EOS: Self = Self(sys::KVC_TEXT_EOS);
    /// Leave out the spaces that tokenizing put in; of tokens from the beginning of a text on.
    pub const TRIM: Self = Self(sys::KVC_TEXT_TRIM);
}

impl BitOr for TextFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a model is.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs)] // the names are the header's
pub struct ModelInfo {
    /// "llama".
    pub arch: String,
    /// `general.name` of the file, or "".
    pub name: String,
    /// The most frequent weight type by bytes of the layers, "Q4_1".
    pub weights: String,
    /// 32 hexadecimal digits over header, tensor table and samples of the weights.
    pub fingerprint: String,
    pub n_layer: u32,
    pub n_embd: u32,
    /// Tokens in the vocabulary, and logits of a token.
    pub n_vocab: u32,
    /// Context it was trained for.
    pub n_ctx_train: u32,
    /// Query heads of the first layer.
    pub n_head: u32,
    /// KV heads of the first layer.
    pub n_head_kv: u32,
    /// Elements of a key.
    pub head_dim: u32,
    /// Threads that compute.
    pub n_threads: u32,
    /// Beginning of text.
    pub bos: Option<Token>,
    /// End of text.
    pub eos: Option<Token>,
    /// End of a chat turn.
    pub eot: Option<Token>,
    /// Weights.
    pub n_param: u64,
    pub file_bytes: u64,
    /// Bytes of the file that decoding one token reads.
    pub read_bytes: u64,
    /// Multiply-adds of one token in the layers' products.
    pub n_mac: u64,
    /// The family of its chat template, "chatml"; "" when it has none or an unknown one.
    pub chat: String,
}

/// The handle with what was read of it once. The lock is for calls that leave a sentence there.
struct Inner {
    handle: Handle,
    lock: Mutex<()>,
    info: ModelInfo,
}

struct Handle(*mut sys::kvc_model);

// A handle may be used from any thread; what isn't [any] in the header is called under the lock.
unsafe impl Send for Handle {}
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        unsafe { sys::kvc_model_close(self.0) }
    }
}

/// An open model. Clones are the same model.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

impl Model {
    /// Opens a GGUF file. Uses `n_threads`, `n_batch` and `repack` of the params.
    pub fn open(path: impl AsRef<Path>, params: &Params) -> Result<Self> {
        let path = c_path("the model's path", path.as_ref())?;
        let given = params.give()?;
        let mut model = ptr::null_mut();
        given.check(unsafe { sys::kvc_model_open(path.as_ptr(), given.ptr(), &mut model) })?;
        Self::new(Handle(model))
    }

    /// The same from bytes in memory, which aren't needed after the call.
    pub fn from_bytes(bytes: &[u8], params: &Params) -> Result<Self> {
        let given = params.give()?;
        let mut model = ptr::null_mut();
        given.check(unsafe {
            let (p, n) = (bytes.as_ptr().cast(), bytes.len());
            sys::kvc_model_open_memory(p, n, given.ptr(), &mut model)
        })?;
        Self::new(Handle(model))
    }

    fn new(handle: Handle) -> Result<Self> {
        let info = read_info(&handle)?;
        Ok(Self(Arc::new(Inner { handle, lock: Mutex::new(()), info })))
    }

    /// Calls on the C handle, alone on it.
    pub(crate) fn with<T>(&self, call: impl FnOnce(*mut sys::kvc_model) -> T) -> T {
        let _alone = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        call(self.0.handle.0)
    }

    /// Calls on the C handle that leave their sentence there.
    pub(crate) fn try_with(&self, call: impl FnOnce(*mut sys::kvc_model) -> i32) -> Result<()> {
        self.with(|model| check(call(model), || unsafe { sys::kvc_model_error(model) }))
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Whether a model that gives this token has ended its turn or its text.
    pub fn is_end(&self, token: Token) -> bool {
        unsafe { sys::kvc_model_is_end(self.0.handle.0, token) != 0 }
    }

    /// Text to tokens.
    pub fn tokenize(&self, text: &str, flags: TextFlags) -> Result<Vec<Token>> {
        // No token is shorter than a byte but those that are put in front.
        fill(text.len() + 2, |out: *mut Token, cap, n| {
            let (p, len) = (text.as_ptr().cast(), text.len());
            self.try_with(|m| unsafe { sys::kvc_model_tokenize(m, p, len, flags.0, out, cap, n) })
        })
    }

    /// Tokens to bytes, which may begin and end inside a UTF-8 character: [`Model::text_stream`]
    /// joins such pieces.
    pub fn detokenize(&self, tokens: &[Token], flags: TextFlags) -> Result<Vec<u8>> {
        fill(tokens.len() * 8 + 16, |out: *mut u8, cap, n| {
            let (p, len, out) = (tokens.as_ptr(), tokens.len(), out.cast::<c_char>());
            self.try_with(|m| unsafe { sys::kvc_model_detokenize(m, p, len, flags.0, out, cap, n) })
        })
    }

    /// Text of tokens that come one by one.
    pub fn text_stream(&self) -> TextStream {
        TextStream::new(self.clone())
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Model").field(&self.info().name).finish()
    }
}

fn read_info(handle: &Handle) -> Result<ModelInfo> {
    let mut info: sys::kvc_model_info = unsafe { zeroed() };
    info.struct_size = size_of::<sys::kvc_model_info>() as u32;
    let rc = unsafe { sys::kvc_model_get_info(handle.0, &mut info) };
    check(rc, || unsafe { sys::kvc_model_error(handle.0) })?;
    let token = |t: Token| if t >= 0 { Some(t) } else { None };
    Ok(ModelInfo {
        arch: unsafe { string(info.arch) },
        name: unsafe { string(info.name) },
        weights: unsafe { string(info.weights) },
        fingerprint: unsafe { string(info.fingerprint) },
        n_layer: info.n_layer,
        n_embd: info.n_embd,
        n_vocab: info.n_vocab,
        n_ctx_train: info.n_ctx_train,
        n_head: info.n_head,
        n_head_kv: info.n_head_kv,
        head_dim: info.head_dim,
        n_threads: info.n_threads,
        bos: token(info.token_bos),
        eos: token(info.token_eos),
        eot: token(info.token_eot),
        n_param: info.n_param,
        file_bytes: info.file_bytes,
        read_bytes: info.read_bytes,
        n_mac: info.n_mac,
        chat: unsafe { string(info.chat) },
    })
}

/// A vector from a call that writes at most `cap` items and answers how many there are.
pub(crate) fn fill<T: Clone + Default>(
    mut cap: usize,
    call: impl Fn(*mut T, usize, *mut usize) -> Result<()>,
) -> Result<Vec<T>> {
    loop {
        let mut out = vec![T::default(); cap];
        let mut n = 0;
        call(out.as_mut_ptr(), cap, &mut n)?;
        if n <= cap {
            out.truncate(n);
            return Ok(out);
        }
        cap = n;
    }
}
