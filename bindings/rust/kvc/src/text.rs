// SPDX-License-Identifier: MIT
//! Text of tokens that come one by one: a character may be spread over several of them.

use crate::{Model, Result, TextFlags, Token};
use std::str;

/// Turns tokens into text, and holds back a UTF-8 character until it is whole. Special tokens give
/// nothing.
#[derive(Clone, Debug)]
pub struct TextStream {
    model: Model,
    held: Vec<u8>,
}

impl TextStream {
    pub(crate) fn new(model: Model) -> Self {
        Self { model, held: Vec::new() }
    }

    /// The characters that this token completes, perhaps none. Bytes that are no UTF-8 become U+FFFD.
    pub fn push(&mut self, token: Token) -> Result<String> {
        let bytes = self.model.detokenize(&[token], TextFlags::PLAIN)?;
        self.held.extend_from_slice(&bytes);
        Ok(take_whole(&mut self.held))
    }

    /// What was held back, as U+FFFD: the text ended inside a character. Mostly "".
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Takes all but the beginning of a character that may still be completed.
fn take_whole(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        let (valid, bad) = match str::from_utf8(held) {
            Ok(_) => (held.len(), None),
            Err(e) => (e.valid_up_to(), Some(e.error_len())),
        };
        text.push_str(&String::from_utf8_lossy(&held[..valid]));
        held.drain(..valid);
        match bad {
            Some(Some(n)) => {
                text.push(char::REPLACEMENT_CHARACTER);
                held.drain(..n);
            }
            _ => return text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::take_whole;

    /// The pieces of `bytes`, one byte at a time, and what is left.
    fn stream(bytes: &[u8]) -> (Vec<String>, Vec<u8>) {
        let mut held = Vec::new();
        let pieces = bytes.iter().map(|b| {
            held.push(*b);
            take_whole(&mut held)
        });
        (pieces.collect(), held)
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let (pieces, held) = stream("aé€😀".as_bytes());
        assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "😀"]);
        assert!(held.is_empty());
    }

    #[test]
    fn the_beginning_of_a_character_is_held() {
        assert_eq!(
            stream(b"a\xe2\x82"),
            (vec!["a".into(), "".into(), "".into()], vec![0xe2, 0x82])
        );
    }

    #[test]
    fn what_is_no_character_is_replaced_as_at_once() {
        for bytes in [&b"\xff\x80a"[..], b"\xe2\x28\xa1", b"\xc3\xc3\xa9", b"\xf0\x9f\x41\x80"] {
            let (pieces, held) = stream(bytes);
            assert!(held.is_empty());
            assert_eq!(pieces.concat(), String::from_utf8_lossy(bytes));
        }
    }
}
