// SPDX-License-Identifier: MIT
//! Declarations of `kvc/kvc.h`, as they stand there: every function that libkvc exports, and the
//! types and constants that a program needs. The header is the manual. They are committed and
//! compared with the installed header by a test. `kvc` is the safe crate over them.
#![allow(non_camel_case_types)]

mod bindings;
pub use bindings::*;
