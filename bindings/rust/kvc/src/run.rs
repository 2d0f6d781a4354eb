// SPDX-License-Identifier: MIT
//! Decode calls of many sessions: the weights are read once for all of them.

use crate::error::{count, Error, Result, Status};
use crate::{Session, Token};
use kvc_sys as sys;
use std::mem::size_of;
use std::ptr;

/// Which logits a run wants.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum Want<'a> {
    /// Those of the last token.
    #[default]
    Last,
    /// None.
    None,
    /// Of every token.
    All,
    /// Of those whose flag is set; one for each token.
    List(&'a [bool]),
}

/// One session's part of a decode call, made by [`Run::new`] and given to [`decode`].
#[derive(Debug)]
pub struct Run<'a> {
    session: &'a mut Session,
    tokens: &'a [Token],
    want: Want<'a>,
    prompt_end: bool,
    result: Result<u32>,
}

impl<'a> Run<'a> {
    /// Tokens that follow those of the session; the logits of the last one are wanted.
    pub fn new(session: &'a mut Session, tokens: &'a [Token]) -> Self {
        let result = Err(Error::new(Status::ARG, "the run wasn't given to decode()"));
        Self { session, tokens, want: Want::Last, prompt_end: false, result }
    }

    /// Wants other logits.
    #[must_use]
    pub fn want(mut self, want: Want<'a>) -> Self {
        self.want = want;
        self
    }

    /// The last token ends a prompt, even if its predecessor's logits were wanted too.
    #[must_use]
    pub fn prompt_end(mut self) -> Self {
        self.prompt_end = true;
        self
    }

    /// What became of this run: its rows of logits, or why it failed.
    pub fn result(&self) -> Result<u32> {
        self.result.clone()
    }

    /// Row `i` of its logits, as [`Session::logits`].
    pub fn logits(&self, i: u32) -> Option<&[f32]> {
        self.session.logits(i)
    }

    fn check(&self) -> Result<()> {
        count(self.tokens.len())?;
        match self.want {
            Want::List(list) if list.len() != self.tokens.len() => Err(Error::new(
                Status::ARG,
                format!("{} flags for {} tokens; give one each", list.len(), self.tokens.len()),
            )),
            _ => Ok(()),
        }
    }

    fn c(&mut self) -> sys::kvc_run {
        let (wants, want) = match self.want {
            Want::Last => (sys::KVC_WANT_LAST, ptr::null()),
            Want::None => (sys::KVC_WANT_NONE, ptr::null()),
            Want::All => (sys::KVC_WANT_ALL, ptr::null()),
            Want::List(list) => (sys::KVC_WANT_LIST, list.as_ptr().cast()), // a bool is 0 or 1
        };
        sys::kvc_run {
            struct_size: size_of::<sys::kvc_run>() as u32,
            wants,
            session: self.session.ptr(),
            token: self.tokens.as_ptr(),
            want,
            n_token: self.tokens.len() as u32,
            prompt_end: self.prompt_end.into(),
            status: sys::KVC_OK,
            n_logits: 0,
        }
    }
}

/// Computes all runs together. Their sessions share a model and a way to compute. A run that fails
/// leaves its session as before the call; the others go on. The first error is answered, and each
/// run's own by [`Run::result`].
pub fn decode(runs: &mut [Run<'_>]) -> Result<()> {
    let n = count(runs.len())?;
    runs.iter().try_for_each(Run::check)?;
    let mut c: Vec<_> = runs.iter_mut().map(Run::c).collect();
    unsafe { sys::kvc_decode(c.as_mut_ptr(), n, size_of::<sys::kvc_run>() as u32) };
    for (run, c) in runs.iter_mut().zip(&c) {
        run.result = run.session.check(c.status).map(|()| c.n_logits);
    }
    runs.iter().try_for_each(|run| run.result().map(|_| ()))
}
