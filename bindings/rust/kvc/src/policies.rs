// SPDX-License-Identifier: MIT
//! What a session could load: policies that were found, and files that are broken.

use crate::error::{check, string, Result, Status};
use crate::Params;
use kvc_sys as sys;
use std::mem::{size_of, zeroed};
use std::os::raw::c_char;
use std::ptr;

/// The policies that were found, in order of name; broken files last.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Policies {
    /// The policies.
    pub list: Vec<Policy>,
    /// The directories that were searched, ':' between them.
    pub path: String,
}

/// One policy, or one file that is broken.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Policy {
    /// [`Status::OK`], or why it can't be loaded.
    pub status: Status,
    /// "" or the sentence.
    pub error: String,
    /// Its name; for a broken file the file's.
    pub name: String,
    /// Its file; "" when linked in.
    pub path: String,
    /// "" when broken.
    pub version: String,
    /// One line; "" when broken.
    pub summary: String,
    /// SPDX identifier; "" when broken.
    pub license: String,
    /// Capability bits, `KVC_CAP_…` of `kvc/policy.h`.
    pub caps: u64,
    /// The ABI that it was built with.
    pub abi: u32,
    /// Its parameters.
    pub params: Vec<PolicyParam>,
}

/// One parameter of a policy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PolicyParam {
    /// Its name.
    pub name: String,
    /// Its type, `KVC_PARAM_…` of `kvc/policy.h`.
    pub kind: u32,
    /// "tokens", "bytes", "bits", or "".
    pub unit: String,
    /// One line.
    pub help: String,
    /// The names that it may have, of a choice.
    pub choices: Vec<String>,
}

struct List(*mut sys::kvc_policies);

impl Drop for List {
    fn drop(&mut self) {
        unsafe { sys::kvc_policies_close(self.0) }
    }
}

/// Looks for policies where a session would.
pub fn policies(params: &Params) -> Result<Policies> {
    let given = params.give()?;
    let mut list = ptr::null_mut();
    given.check(unsafe { sys::kvc_policies_open(given.ptr(), &mut list) })?;
    let list = List(list);
    let n = unsafe { sys::kvc_policies_count(list.0) };
    Ok(Policies {
        list: (0..n).map(|i| policy(&list, i)).collect::<Result<_>>()?,
        path: unsafe { string(sys::kvc_policies_path(list.0)) },
    })
}

fn policy(list: &List, i: u32) -> Result<Policy> {
    let mut info: sys::kvc_policy_info = unsafe { zeroed() };
    info.struct_size = size_of::<sys::kvc_policy_info>() as u32;
    check(unsafe { sys::kvc_policies_get(list.0, i, &mut info) }, ptr::null)?;
    // Strings live as long as the list.
    let text = |s: *const c_char| unsafe { string(s) };
    Ok(Policy {
        status: Status::new(info.status),
        error: text(info.error),
        name: text(info.name),
        path: text(info.path),
        version: text(info.version),
        summary: text(info.summary),
        license: text(info.license),
        caps: info.caps,
        abi: info.abi,
        params: (0..info.n_param).map(|k| param(list, i, k)).collect::<Result<_>>()?,
    })
}

fn param(list: &List, i: u32, k: u32) -> Result<PolicyParam> {
    let mut row = ptr::null();
    check(unsafe { sys::kvc_policies_param(list.0, i, k, &mut row) }, ptr::null)?;
    let row = unsafe { &*row };
    let text = |s: *const c_char| unsafe { string(s) };
    let mut choices = Vec::new();
    if row.r#type == sys::KVC_PARAM_ENUM {
        // Ended by NULL.
        let mut choice = row.choice;
        while unsafe { !(*choice).is_null() } {
            choices.push(text(unsafe { *choice }));
            choice = unsafe { choice.add(1) };
        }
    }
    let (name, unit, help) = (text(row.name), text(row.unit), text(row.help));
    Ok(PolicyParam { name, kind: row.r#type, unit, help, choices })
}
