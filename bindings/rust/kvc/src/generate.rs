// SPDX-License-Identifier: MIT
//! The decode loop as an iterator.

use crate::error::Result;
use crate::{Sampler, Session, Token};
use std::iter::FusedIterator;

/// Tokens of [`Session::generate`]. The token that came last isn't decoded yet: the next call does
/// that, so dropping the iterator leaves the session one token short of what it yielded.
#[derive(Debug)]
pub struct Generate<'a> {
    session: &'a mut Session,
    sampler: &'a mut Sampler,
    prompt: &'a [Token],
    last: Option<Token>,
    ended: bool,
}

impl<'a> Generate<'a> {
    pub(crate) fn new(
        session: &'a mut Session,
        sampler: &'a mut Sampler,
        prompt: &'a [Token],
    ) -> Self {
        Self { session, sampler, prompt, last: None, ended: false }
    }

    /// The logits that the latest token was picked from; `None` before the first.
    pub fn logits(&self) -> Option<&[f32]> {
        self.session.logits(0)
    }

    fn step(&mut self) -> Result<Option<Token>> {
        let tokens = self.last.as_ref().map_or(self.prompt, std::slice::from_ref);
        let token = self.sampler.sample(self.session.decode(tokens)?)?;
        self.last = Some(token);
        Ok((!self.session.model().is_end(token)).then_some(token))
    }
}

impl Iterator for Generate<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.step().transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

impl FusedIterator for Generate<'_> {}
