// SPDX-License-Identifier: MIT
//! The decode loop of a transformer language model against a pluggable KV cache: safe Rust over
//! libkvc, whose header `kvc/kvc.h` is the manual.
//!
//! A program opens a [`Model`] (a GGUF file), opens [`Session`]s on it (one sequence each, with a
//! stack of cache policies), and loops: [`Session::decode`] computes tokens and answers logits, a
//! [`Sampler`] picks the next token. [`Session::generate`] is that loop as an iterator.
//!
//! ```no_run
//! use kvc::{Model, Params, Sampler, Session, TextFlags};
//!
//! # fn main() -> kvc::Result<()> {
//! let params = Params::new();
//! let model = Model::open("model.gguf", &params)?;
//! let mut session = Session::open(&model, "window:size=1024+quant8", &params)?;
//! let mut sampler = Sampler::new(&params)?;
//! let prompt = model.tokenize("Once upon a time", TextFlags::BOS)?;
//! for token in session.generate(&mut sampler, &prompt).take(32) {
//!     println!("{}", token?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Errors** carry the library's [`Status`] and its sentence, which names the thing and says what to
//! do.
//!
//! **Threads.** A [`Model`] is shared: clone it, use it from any thread. A [`Session`] and a
//! [`Sampler`] are used by one thread at a time (`Send`, not `Sync`); sessions of one model compute
//! one after the other, since they share its threads, and [`decode`] computes many together. A
//! [`Canceller`] stops a session from any thread.
//!
//! **Lifetimes.** Handles close when they are dropped, in any order: a model lives until its last
//! session is gone. Logits borrow their session, so they can't outlive the next call.
//!
//! Not wrapped: the caller's memory, the log, and policies linked into the program.

#![deny(missing_docs, unsafe_op_in_unsafe_fn)]

mod chat;
mod error;
mod generate;
mod model;
mod params;
mod policies;
mod run;
mod sampler;
mod session;
mod text;

pub use chat::{ChatFlags, Message};
pub use error::{Error, Result, Status};
pub use generate::Generate;
pub use kvc_sys::kvc_session_stats as Stats;
pub use kvc_sys::{KVC_COMPUTE_F32, KVC_COMPUTE_INT8}; // what Stats.compute says
pub use model::{Model, ModelInfo, TextFlags};
pub use params::{Params, Value};
pub use policies::{policies, Policies, Policy, PolicyParam};
pub use run::{decode, Run, Want};
pub use sampler::Sampler;
pub use session::{Canceller, Session, Stage};
pub use text::TextStream;

/// A token: an index into the vocabulary.
pub type Token = i32;

/// The version of the library that runs, "0.1.0".
pub fn version() -> &'static str {
    error::fixed(unsafe { kvc_sys::kvc_version() })
}

/// The kernel level in use on this machine: "scalar", "avx2" or "avx512".
pub fn cpu_level() -> &'static str {
    error::fixed(unsafe { kvc_sys::kvc_cpu_level() })
}
