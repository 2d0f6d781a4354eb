// SPDX-License-Identifier: MIT
//! Sessions: one sequence each. `&mut self` keeps two calls from meeting, so what the C library
//! answers by KVC_E_BUSY can't be written here; a `Canceller` is the one thing that reaches in from
//! another thread, through a cell that the session empties when it closes.

use crate::error::{c_path, c_string, check, count, string, Error, Result, Status};
use crate::{Generate, Model, Params, Sampler, Stats, Token};
use kvc_sys as sys;
use std::fmt;
use std::mem::{size_of, zeroed};
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::ptr;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

/// The handle, or NULL once the session is closed.
struct Cell(Mutex<*mut sys::kvc_session>);

// kvc_session_cancel() may be called from any thread while the session is open, and that is all that
// others do with it.
unsafe impl Send for Cell {}
unsafe impl Sync for Cell {}

/// Stops a session's calls, from any thread. After the session is gone it does nothing.
#[derive(Clone)]
pub struct Canceller(Arc<Cell>);

impl Canceller {
    /// Stops the decode call that uses the session, or the next one, which then answers
    /// [`Status::CANCELLED`] and leaves the session as it was before.
    pub fn cancel(&self) {
        let session = self.0 .0.lock().unwrap_or_else(PoisonError::into_inner);
        unsafe { sys::kvc_session_cancel(*session) } // NULL is legal
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Canceller")
    }
}

/// One sequence with its cache.
pub struct Session {
    handle: *mut sys::kvc_session,
    cell: Arc<Cell>,
    model: Model,
}

// A handle may be used from any thread, by one at a time.
unsafe impl Send for Session {}

impl Session {
    /// Opens a session with a stack of policies: "full", "window:size=1024:sinks=4+quant8",
    /// "./my.so:x=1"; "" keeps everything as f16. Uses `n_ctx`, `compute`, `seed` and where to search
    /// for policies.
    pub fn open(model: &Model, spec: &str, params: &Params) -> Result<Self> {
        let spec = c_string("the stack of policies", spec)?;
        let given = params.give()?;
        let mut session = ptr::null_mut();
        given.check(model.with(|m| unsafe {
            sys::kvc_session_open(m, spec.as_ptr(), given.ptr(), &mut session)
        }))?;
        Ok(Self::new(session, model))
    }

    /// Opens a session that was saved; it goes on where it was, with the same logits to the last bit.
    /// The stack, `n_ctx` and `compute` come from the file.
    pub fn load(model: &Model, path: impl AsRef<Path>, params: &Params) -> Result<Self> {
        let path = c_path("the session's path", path.as_ref())?;
        let given = params.give()?;
        let mut session = ptr::null_mut();
        given.check(model.with(|m| unsafe {
            sys::kvc_session_load(m, path.as_ptr(), given.ptr(), &mut session)
        }))?;
        Ok(Self::new(session, model))
    }

    fn new(handle: *mut sys::kvc_session, model: &Model) -> Self {
        let cell = Arc::new(Cell(Mutex::new(handle)));
        Self { handle, cell, model: model.clone() }
    }

    pub(crate) fn ptr(&mut self) -> *mut sys::kvc_session {
        self.handle
    }

    /// The result of a call on this session.
    pub(crate) fn check(&self, code: i32) -> Result<()> {
        check(code, || unsafe { sys::kvc_session_error(self.handle) })
    }

    /// Computes tokens, which follow those that the session holds, and answers the logits of the last
    /// one, `n_vocab` of them.
    ///
    /// A token whose logits are asked for ends a prompt unless its predecessor's were too, and
    /// policies may give up entries there: to cut a prompt into several calls, use
    /// [`Session::prefill`] for all pieces but the last.
    pub fn decode(&mut self, tokens: &[Token]) -> Result<&[f32]> {
        let n = count(tokens.len())?;
        self.check(unsafe { sys::kvc_session_decode(self.handle, tokens.as_ptr(), n) })?;
        self.logits(0).ok_or_else(|| Error::new(Status::RANGE, "the call left no logits"))
    }

    /// The same without logits: pieces of a prompt that goes on.
    pub fn prefill(&mut self, tokens: &[Token]) -> Result<()> {
        let n = count(tokens.len())?;
        self.check(unsafe { sys::kvc_session_prefill(self.handle, tokens.as_ptr(), n) })
    }

    /// Row `i` of the wanted logits of the last decode call; `None` when there is none.
    pub fn logits(&self, i: u32) -> Option<&[f32]> {
        let n = self.model.info().n_vocab as usize;
        let row = unsafe { sys::kvc_session_logits(self.handle, i) };
        // Valid until the next decode, truncate or close, and all of them need the session mutably.
        (!row.is_null()).then(|| unsafe { slice::from_raw_parts(row, n) })
    }

    /// Decodes the prompt and goes on with what the sampler picks: an iterator over the tokens. It
    /// ends before a token that ends generation ([`Model::is_end`]), after an error, and otherwise
    /// never: `take(n)` bounds it.
    pub fn generate<'a>(
        &'a mut self,
        sampler: &'a mut Sampler,
        prompt: &'a [Token],
    ) -> Generate<'a> {
        Generate::new(self, sampler, prompt)
    }

    /// Tokens that the session holds.
    pub fn n_past(&self) -> u32 {
        unsafe { sys::kvc_session_n_past(self.handle) }
    }

    /// Tokens that the session holds, by their positions; `..` gives all. Of a session that was loaded
    /// they are all that says what it is about.
    pub fn tokens(&self, range: impl RangeBounds<u32>) -> Result<Vec<Token>> {
        let n_past = u64::from(self.n_past());
        let start = match range.start_bound() {
            Bound::Included(i) => u64::from(*i),
            Bound::Excluded(i) => u64::from(*i) + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(i) => u64::from(*i) + 1,
            Bound::Excluded(i) => u64::from(*i),
            Bound::Unbounded => n_past,
        };
        // The library has no sentence for this, and would be asked after room was made.
        if start > end || end > n_past {
            let text = format!(
                "positions {start} to {end} aren't in the {n_past} tokens of the session; ask for \
                 those below n_past"
            );
            return Err(Error::new(Status::RANGE, text));
        }
        let mut out = vec![0; (end - start) as usize];
        self.check(unsafe {
            let n = out.len() as u32;
            sys::kvc_session_tokens(self.handle, start as u32, n, out.as_mut_ptr())
        })?;
        Ok(out)
    }

    /// Forgets the tokens from position `n_past` on; 0 clears. What the cache has lost of the rest is
    /// computed again in the next decode call.
    pub fn truncate(&mut self, n_past: u32) -> Result<()> {
        self.check(unsafe { sys::kvc_session_truncate(self.handle, n_past) })
    }

    /// Copies the session: the same tokens, the same cache, whose sealed pages are shared until one
    /// of the two changes them, and policies of its own in the same state.
    pub fn fork(&mut self) -> Result<Self> {
        let mut copy = ptr::null_mut();
        self.check(unsafe { sys::kvc_session_fork(self.handle, &mut copy) })?;
        Ok(Self::new(copy, &self.model))
    }

    /// Writes the session to a file, which holds the old session or the new one, never a part.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = c_path("the session's path", path.as_ref())?;
        self.check(unsafe { sys::kvc_session_save(self.handle, path.as_ptr()) })
    }

    /// What stops this session's calls from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller(self.cell.clone())
    }

    /// The model that it was opened on.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The stack with every parameter filled in.
    pub fn spec(&self) -> String {
        unsafe { string(sys::kvc_session_spec(self.handle)) }
    }

    /// Counters: tokens, bytes, time.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats: Stats = unsafe { zeroed() };
        stats.struct_size = size_of::<Stats>() as u32;
        self.check(unsafe { sys::kvc_session_get_stats(self.handle, &mut stats) })?;
        Ok(stats)
    }

    /// The figures of each stage of the stack.
    pub fn stages(&self) -> Result<Vec<Stage>> {
        (0..self.stats()?.n_stage).map(|i| self.stage(i)).collect()
    }

    fn stage(&self, i: u32) -> Result<Stage> {
        let mut s: sys::kvc_stage_stats = unsafe { zeroed() };
        s.struct_size = size_of::<sys::kvc_stage_stats>() as u32;
        self.check(unsafe { sys::kvc_session_get_stage(self.handle, i, &mut s) })?;
        Ok(Stage {
            name: unsafe { string(s.name) },
            path: unsafe { string(s.path) },
            memory_bytes: s.memory_bytes,
            peak_bytes: s.peak_bytes,
            disk_bytes: s.disk_bytes,
            hook_ns: s.hook_ns,
            n_evicted: s.n_evicted,
            n_selected: s.n_selected,
            n_skipped: s.n_skipped,
            stored_bytes: s.stored_bytes,
            tier_ns: s.tier_ns,
            n_put: s.n_put,
            n_get: s.n_get,
            worker_ns: s.worker_ns,
            payload_bytes: s.payload_bytes,
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut open = self.cell.0.lock().unwrap_or_else(PoisonError::into_inner);
        *open = ptr::null_mut();
        unsafe { sys::kvc_session_close(self.handle) }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("spec", &self.spec())
            .field("n_past", &self.n_past())
            .finish()
    }
}

/// One stage's figures.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stage {
    /// Name of the policy.
    pub name: String,
    /// Its file; "" when linked in.
    pub path: String,
    /// Counted by the host.
    pub memory_bytes: u64,
    /// The most of it.
    pub peak_bytes: u64,
    /// Counted by the host.
    pub disk_bytes: u64,
    /// Time in its hooks on the clock.
    pub hook_ns: u64,
    /// Entries given up, as the policy says.
    pub n_evicted: u64,
    /// Pages left to be read, as the policy says.
    pub n_selected: u64,
    /// Pages taken out, as the policy says.
    pub n_skipped: u64,
    /// What the pages in a tier take there, as the policy says.
    pub stored_bytes: u64,
    /// Time in the tier's functions, all threads together.
    pub tier_ns: u64,
    /// Pages given to the tier.
    pub n_put: u64,
    /// Pages brought back from it.
    pub n_get: u64,
    /// Time in its functions on the worker threads, all together.
    pub worker_ns: u64,
    /// Of the stage that answers the format: sealed pages, as they are in memory.
    pub payload_bytes: u64,
}
