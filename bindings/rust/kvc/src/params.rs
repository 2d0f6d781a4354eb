// SPDX-License-Identifier: MIT
//! Options. They are kept here as they were given, and become C params for the one call that uses
//! them, which is where a wrong one is answered: an error's sentence stands on those params.

use crate::error::{c_path, c_string, check, Error, Result, Status};
use kvc_sys as sys;
use std::path::PathBuf;
use std::ptr;

/// An option's value; numbers and text convert into it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// Text; for a number it is parsed.
    Text(String),
}

macro_rules! values {
    ($($from:ty => $kind:ident;)*) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Value::$kind(value.into())
            }
        })*
    };
}

values! {
    i64 => Int;
    i32 => Int;
    u32 => Int;
    bool => Int;
    f64 => Float;
    &str => Text;
    String => Text;
}

/// Options of models, sessions, samplers and lists of policies; what isn't set has its default.
///
/// Nothing is checked until they are used: an unknown name or a value out of range is answered by
/// [`Status::PARAM`] there.
///
/// ```
/// let params = kvc::Params::new().n_ctx(4096).temperature(0.7).seed(1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Params {
    options: Vec<(String, Value)>,
    dirs: Vec<PathBuf>,
}

impl Params {
    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the option of that name; `kvc_params_create()` lists them.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.options.push((name.to_owned(), value.into()));
        self
    }

    /// Model: threads that compute; 0 (default): one per core that the process may use.
    #[must_use]
    pub fn n_threads(self, n: u32) -> Self {
        self.set("n_threads", n)
    }

    /// Session: most positions; 0 (default): the model's own, at most 8192.
    #[must_use]
    pub fn n_ctx(self, n: u32) -> Self {
        self.set("n_ctx", n)
    }

    /// Model: most tokens computed together; default 512.
    #[must_use]
    pub fn n_batch(self, n: u32) -> Self {
        self.set("n_batch", n)
    }

    /// Model: whether weights are brought into the kernels' layout at load; they are by default.
    /// Without, they stay in the file, which must not change: the same bits in less memory and much
    /// more time.
    #[must_use]
    pub fn repack(self, repack: bool) -> Self {
        self.set("repack", repack)
    }

    /// Session: "int8" (default), which rounds activations and is fast, or "f32", which is exact.
    #[must_use]
    pub fn compute(self, how: &str) -> Self {
        self.set("compute", how)
    }

    /// Session and sampler: seed of random numbers; 0 by default.
    #[must_use]
    pub fn seed(self, seed: i64) -> Self {
        self.set("seed", seed)
    }

    /// Sampler: 0 (default) always picks the likeliest token.
    #[must_use]
    pub fn temperature(self, t: f64) -> Self {
        self.set("temperature", t)
    }

    /// Sampler: only the k likeliest tokens; 0 (default): all.
    #[must_use]
    pub fn top_k(self, k: u32) -> Self {
        self.set("top_k", k)
    }

    /// Sampler: the likeliest tokens that sum up to p; 1 (default): all.
    #[must_use]
    pub fn top_p(self, p: f64) -> Self {
        self.set("top_p", p)
    }

    /// Sampler: only tokens of at least p times the likeliest's probability; 0 (default): all.
    #[must_use]
    pub fn min_p(self, p: f64) -> Self {
        self.set("min_p", p)
    }

    /// Whether policies are searched in KVC_POLICY_PATH; they are by default.
    #[must_use]
    pub fn policy_env(self, search: bool) -> Self {
        self.set("policy_env", search)
    }

    /// Whether policies are searched in the installed directory; they are by default.
    #[must_use]
    pub fn policy_default(self, search: bool) -> Self {
        self.set("policy_default", search)
    }

    /// Adds a directory to search for policies, before all others.
    #[must_use]
    pub fn policy_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dirs.push(dir.into());
        self
    }

    /// Makes the C params.
    pub(crate) fn give(&self) -> Result<Given> {
        let mut params = ptr::null_mut();
        let rc = unsafe { sys::kvc_params_create(&mut params) };
        if rc < 0 {
            return Err(Error::new(Status::new(rc), ""));
        }
        let given = Given(params);
        for (name, value) in &self.options {
            let c = c_string("an option's name", name.as_str())?;
            given.check(match value {
                Value::Int(i) => unsafe { sys::kvc_params_set_i64(params, c.as_ptr(), *i) },
                Value::Float(f) => unsafe { sys::kvc_params_set_f64(params, c.as_ptr(), *f) },
                Value::Text(s) => {
                    let s = c_string(&format!("the value of option \"{name}\""), s.as_str())?;
                    unsafe { sys::kvc_params_set_str(params, c.as_ptr(), s.as_ptr()) }
                }
            })?;
        }
        for dir in &self.dirs {
            let dir = c_path("a policy directory", dir)?;
            given.check(unsafe { sys::kvc_params_add_policy_dir(params, dir.as_ptr()) })?;
        }
        Ok(given)
    }
}

/// C params for one call, which leaves its sentence there.
pub(crate) struct Given(*mut sys::kvc_params);

impl Given {
    pub(crate) fn ptr(&self) -> *mut sys::kvc_params {
        self.0
    }

    pub(crate) fn check(&self, code: i32) -> Result<()> {
        check(code, || unsafe { sys::kvc_params_error(self.0) })
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        unsafe { sys::kvc_params_destroy(self.0) }
    }
}
