// SPDX-License-Identifier: MIT
//! Samplers pick tokens from logits.

use crate::error::{count, Error, Result, Status};
use crate::{Params, Token};
use kvc_sys as sys;
use std::fmt;
use std::ptr;

/// Picks tokens from logits: always the likeliest one, or by chance.
pub struct Sampler(*mut sys::kvc_sampler);

// A handle may be used from any thread, by one at a time.
unsafe impl Send for Sampler {}

impl Sampler {
    /// Uses `temperature`, `top_k`, `top_p`, `min_p` and `seed` of the params.
    pub fn new(params: &Params) -> Result<Self> {
        let given = params.give()?;
        let mut sampler = ptr::null_mut();
        given.check(unsafe { sys::kvc_sampler_create(given.ptr(), &mut sampler) })?;
        Ok(Self(sampler))
    }

    /// Picks a token. Ties go to the lowest id; NaN is never picked.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Token> {
        let n = count(logits.len())?;
        match unsafe { sys::kvc_sampler_sample(self.0, logits.as_ptr(), n) } {
            token @ 0.. => Ok(token),
            code => Err(Error::new(Status::new(code), "")),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        unsafe { sys::kvc_sampler_destroy(self.0) }
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sampler")
    }
}
