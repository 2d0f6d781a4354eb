// SPDX-License-Identifier: MIT
//! Chats to tokens.

use crate::error::{c_string, count, Result};
use crate::model::fill;
use crate::{Model, Token};
use kvc_sys as sys;
use std::mem::size_of;
use std::ptr;

/// One message of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// "system", "user" or "assistant".
    pub role: &'a str,
    /// What is said; plain text throughout.
    pub content: &'a str,
}

impl<'a> Message<'a> {
    /// What the model is told before; the first message, if any.
    pub fn system(content: &'a str) -> Self {
        Self { role: "system", content }
    }

    /// What the user says.
    pub fn user(content: &'a str) -> Self {
        Self { role: "user", content }
    }

    /// What the model answered.
    pub fn assistant(content: &'a str) -> Self {
        Self { role: "assistant", content }
    }
}

/// How a chat becomes tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChatFlags(u32);

impl ChatFlags {
    /// The messages and nothing more.
    pub const PLAIN: Self = Self(0);
    /// End where the assistant's answer begins, for the model to go on.
    pub const PROMPT: Self = Self(sys::KVC_CHAT_PROMPT);
}

impl Model {
    /// A chat to tokens, in the form that the model was trained on, or in that of `family`. Markers
    /// become special tokens and contents stay plain text, so that no user can end a turn by writing
    /// its marker.
    ///
    /// To go on with a chat give all its messages again: where the tokens differ from those that the
    /// session holds, [`Session::truncate`](crate::Session::truncate) to there and decode the rest.
    pub fn chat(
        &self,
        family: Option<&str>,
        messages: &[Message<'_>],
        flags: ChatFlags,
    ) -> Result<Vec<Token>> {
        let n = count(messages.len())?;
        let family = family.map(|s| c_string("the chat's family", s)).transpose()?;
        let family = family.as_ref().map_or(ptr::null(), |s| s.as_ptr());
        let role = |m: &Message<'_>| c_string("a message's role", m.role);
        let roles = messages.iter().map(role).collect::<Result<Vec<_>>>()?;
        let c = messages.iter().zip(&roles).map(|(m, role)| sys::kvc_chat_message {
            role: role.as_ptr(),
            content: m.content.as_ptr().cast(),
            n_content: m.content.len(),
        });
        let c: Vec<_> = c.collect();
        let cap = messages.iter().map(|m| m.content.len() + 16).sum::<usize>() + 32;
        fill(cap, |out: *mut Token, cap, n_out| {
            let (p, stride) = (c.as_ptr(), size_of::<sys::kvc_chat_message>() as u32);
            self.try_with(|m| unsafe {
                sys::kvc_model_chat(m, family, p, n, stride, flags.0, out, cap, n_out)
            })
        })
    }
}
