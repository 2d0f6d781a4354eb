// SPDX-License-Identifier: MIT
//! Status codes and errors. The only file that reads C strings; everything else asks it.

use kvc_sys as sys;
use std::ffi::{CStr, CString};
use std::fmt;
use std::os::raw::c_char;
use std::path::Path;

/// `Ok`, or an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A status code of the library. Not an enum: a later library may answer one that isn't here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(i32);

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:ident;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Status = Status(sys::$code);)*
        }
    };
}

statuses! {
    /// Success; never in an [`Error`].
    OK = KVC_OK;
    /// Out of memory.
    NOMEM = KVC_E_NOMEM;
    /// An invalid argument.
    ARG = KVC_E_ARG;
    /// An index, token or position out of range.
    RANGE = KVC_E_RANGE;
    /// An unknown parameter, or a value out of range.
    PARAM = KVC_E_PARAM;
    /// The text of a stack can't be parsed.
    SPEC = KVC_E_SPEC;
    /// Input or output failed.
    IO = KVC_E_IO;
    /// A file or policy isn't there.
    NOT_FOUND = KVC_E_NOT_FOUND;
    /// A malformed file.
    FORMAT = KVC_E_FORMAT;
    /// Not supported.
    UNSUPPORTED = KVC_E_UNSUPPORTED;
    /// The context is full.
    FULL = KVC_E_FULL;
    /// The session is in use by another call.
    BUSY = KVC_E_BUSY;
    /// Cancelled.
    CANCELLED = KVC_E_CANCELLED;
    /// The session is dead after a policy failed.
    DEAD = KVC_E_DEAD;
    /// A policy failed or broke its contract.
    POLICY = KVC_E_POLICY;
    /// Two stages answer the same question.
    CONFLICT = KVC_E_CONFLICT;
    /// A page was lost by its tier.
    LOST = KVC_E_LOST;
    /// Invalid UTF-8.
    UTF8 = KVC_E_UTF8;
    /// A policy's file is missing or not a regular file.
    LOAD_FILE = KVC_E_LOAD_FILE;
    /// A policy's file is not a loadable library.
    LOAD_OPEN = KVC_E_LOAD_OPEN;
    /// A policy's library has no `kvc_policy_entry`.
    LOAD_SYMBOL = KVC_E_LOAD_SYMBOL;
    /// A policy was built for another ABI.
    LOAD_ABI = KVC_E_LOAD_ABI;
    /// A policy's table is too small or lacks a mandatory member.
    LOAD_TABLE = KVC_E_LOAD_TABLE;
    /// A policy's name is malformed.
    LOAD_NAME = KVC_E_LOAD_NAME;
    /// A policy's parameter table is malformed.
    LOAD_PARAMS = KVC_E_LOAD_PARAMS;
    /// A policy requires something that this host doesn't have.
    LOAD_REQUIRES = KVC_E_LOAD_REQUIRES;
}

impl Status {
    pub(crate) fn new(code: i32) -> Self {
        Self(code)
    }

    /// The number, as in `kvc/status.h`.
    pub fn code(self) -> i32 {
        self.0
    }

    /// The name, "KVC_E_NOMEM".
    pub fn name(self) -> &'static str {
        fixed(unsafe { sys::kvc_status_name(self.0) })
    }

    /// The text, "out of memory".
    pub fn text(self) -> &'static str {
        fixed(unsafe { sys::kvc_status_text(self.0) })
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// What went wrong: a status and the library's sentence about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    text: String,
}

impl Error {
    /// Of a call without a sentence, the status's own text is the sentence.
    pub(crate) fn new(status: Status, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { status, text: if text.is_empty() { status.text().into() } else { text } }
    }

    /// Which of the library's codes it is.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The sentence that names the thing and says what to do.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

/// The result of a call that leaves its sentence where `text` reads it.
pub(crate) fn check(code: i32, text: impl FnOnce() -> *const c_char) -> Result<()> {
    match code {
        0.. => Ok(()),
        _ => Err(Error::new(Status(code), unsafe { string(text()) })),
    }
}

/// A static string of the library's.
pub(crate) fn fixed(s: *const c_char) -> &'static str {
    unsafe { CStr::from_ptr(s) }.to_str().unwrap_or("?")
}

/// A copy of the library's string; NULL is "".
///
/// # Safety
/// `s` is NULL or a string that lives now.
pub(crate) unsafe fn string(s: *const c_char) -> String {
    if s.is_null() {
        return String::new();
    }
    unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned()
}

/// Text for the library, which ends at the first NUL.
pub(crate) fn c_string(what: &str, text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|e| {
        let at = e.nul_position();
        Error::new(Status::ARG, format!("{what} holds a NUL byte at index {at}; take it out"))
    })
}

/// A path for the library: any bytes, UTF-8 or not.
pub(crate) fn c_path(what: &str, path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    c_string(what, path.as_os_str().as_bytes())
}

/// A count of the library's.
pub(crate) fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::new(Status::ARG, format!("{n} are more than a call takes")))
}
