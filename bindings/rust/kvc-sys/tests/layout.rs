// SPDX-License-Identifier: MIT
//! The committed declarations agree with the installed header. Each is turned into C that a compiler
//! checks beside `#include <kvc/kvc.h>`: functions are declared a second time, members compared by
//! type, constants and sizes by value. And nothing of kvc.h is missing here. It reads bindings.rs
//! in the one form in which that is written.

use kvc_sys::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::size_of;
use std::path::Path;
use std::process::Command;

/// Source without what lies between `begin` and `end`, and without spaces in a row.
fn without(text: &str, begin: &str, end: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(i) = rest.find(begin) {
        out.push_str(&rest[..i]);
        rest = rest[i..].find(end).map_or("", |n| &rest[i + n + end.len()..]);
        out.push(' ');
    }
    out + rest
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn rust() -> String {
    one_line(&without(&(include_str!("../src/bindings.rs").to_owned() + "\n"), "//", "\n"))
}

fn header(name: &str) -> String {
    let path = Path::new(env!("KVC_SYS_INCLUDE")).join("kvc").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let text = without(&text.replace("\\\n", " "), "/*", "*/");
    text.lines().filter(|s| !s.starts_with('#')).collect::<Vec<_>>().join("\n")
}

/// What stands between `begin` and `end`, each time.
fn between<'a>(text: &'a str, begin: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |s| s.find(end).map(|n| &s[..n]))
}

fn last_word(text: &str) -> &str {
    let end = text.trim_end().trim_end_matches(']').len();
    let begin = text[..end].rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |i| i + 1);
    &text[begin..end]
}

fn c_type(rust: &str) -> String {
    let rust = rust.trim();
    if let Some(to) = rust.strip_prefix("*const ") {
        return c_type(to) + " const *";
    }
    if let Some(to) = rust.strip_prefix("*mut ") {
        return c_type(to) + " *";
    }
    match rust {
        "" => "void".into(),
        "i32" | "u32" | "i64" | "u64" => {
            format!("{}int{}_t", if rust.starts_with('u') { "u" } else { "" }, &rust[1..])
        }
        "u8" => "uint8_t".into(),
        "usize" => "size_t".into(),
        "f32" => "float".into(),
        "f64" => "double".into(),
        "c_char" => "char".into(),
        "c_void" => "void".into(),
        _ if rust.ends_with("_fn") => format!("ffi_{rust}"),
        _ => rust.into(),
    }
}

/// `a: T, b: U` as names and types.
fn members(list: &str) -> Vec<(String, String)> {
    list.split(',')
        .filter(|s| !s.trim().is_empty())
        .map(|s| {
            let (name, kind) = s.split_once(':').unwrap();
            let name = name.trim().trim_start_matches("pub ").trim_start_matches("r#");
            (name.to_owned(), kind.trim().to_owned())
        })
        .collect()
}

/// `(a: T) -> R` as the C type of arguments and the C type of the result.
fn signature(text: &str) -> (String, String) {
    let close = text.rfind(')').unwrap();
    let arguments: Vec<_> = members(&text[1..close]).iter().map(|(_, t)| c_type(t)).collect();
    let result = c_type(text[close + 1..].trim_matches(|c| " ,->".contains(c)));
    (if arguments.is_empty() { "void".into() } else { arguments.join(", ") }, result)
}

/// Structs of the declarations that have members.
fn structs() -> BTreeMap<String, Vec<(String, String)>> {
    let text = rust().replace("pub union", "pub struct");
    between(&text, "pub struct ", "}")
        .map(|s| s.split_once('{').unwrap())
        .filter(|(_, body)| !body.contains("_opaque"))
        .map(|(name, body)| (name.trim().to_owned(), members(body)))
        .collect()
}

fn functions() -> BTreeMap<String, (String, String)> {
    between(&rust(), "pub fn ", ";")
        .map(|s| (s[..s.find('(').unwrap()].to_owned(), signature(&s[s.find('(').unwrap()..])))
        .collect()
}

fn constants() -> Vec<(String, String)> {
    between(&rust(), "pub const ", ";")
        .map(|s| s.split_once('=').unwrap())
        .map(|(name, value)| (name.split(':').next().unwrap().to_owned(), value.trim().to_owned()))
        .collect()
}

fn sizes() -> BTreeMap<&'static str, usize> {
    macro_rules! sizes {
        ($($name:ident)*) => { [$((stringify!($name), size_of::<$name>())),*].into() };
    }
    sizes!(kvc_allocator kvc_model_info kvc_chat_message kvc_run kvc_session_stats kvc_stage_stats kvc_value
        kvc_param kvc_policy_info)
}

fn program() -> String {
    let mut c = String::from("#include <kvc/kvc.h>\n");
    for alias in between(&rust(), "pub type ", ">;") {
        let (name, f) = alias.split_once('=').unwrap();
        let (arguments, result) = signature(f.split_once("fn").unwrap().1);
        writeln!(c, "typedef {result} (*ffi_{})({arguments});", name.trim()).unwrap();
    }
    for (name, (arguments, result)) in functions() {
        writeln!(c, "{result} {name}({arguments});").unwrap();
    }
    for (name, value) in constants() {
        writeln!(c, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    for (name, list) in structs() {
        for (member, kind) in list {
            let (kind, what) = (c_type(&kind), format!("{name}.{member}"));
            let is = format!("__typeof__((({name} *)0)->{member})");
            writeln!(c, "_Static_assert(__builtin_types_compatible_p({is}, {kind}), \"{what}\");")
                .unwrap();
        }
    }
    for (name, size) in sizes() {
        writeln!(c, "_Static_assert(sizeof({name}) == {size}, \"sizeof({name})\");").unwrap();
    }
    c
}

#[test]
fn a_c_compiler_agrees() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layout.c");
    std::fs::write(&file, program()).unwrap();
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let out = Command::new(cc)
        .args(["-std=gnu11", "-Wall", "-Werror", "-fsyntax-only", "-I", env!("KVC_SYS_INCLUDE")])
        .arg(&file)
        .output()
        .expect("a C compiler");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn members_stand_in_the_header_s_order() {
    let text = header("kvc.h") + &header("policy.h");
    for (name, list) in structs() {
        let (begin, end) = (format!("{name} {{"), format!("}} {name};"));
        let body = between(&text, &begin, &end)
            .next()
            .unwrap_or_else(|| panic!("{name} isn't in the header"));
        let theirs: Vec<_> = body
            .split(';')
            .filter(|s| !s.trim().is_empty())
            .map(|s| last_word(s.split_once("(*").map_or(s, |f| f.1.split(')').next().unwrap())))
            .collect();
        let ours: Vec<_> = list.iter().map(|(member, _)| member.as_str()).collect();
        assert_eq!(theirs, ours, "{name}");
        assert!(sizes().contains_key(name.as_str()), "{name}: give its size in sizes()");
    }
}

#[test]
fn nothing_of_the_header_is_missing() {
    let text = header("kvc.h");
    let (functions, structs, constants) = (functions(), structs(), constants());
    let declared: Vec<_> = between(&text, "KVC_API ", "(").map(last_word).collect();
    assert!(declared.len() > 40);
    for name in declared {
        assert!(functions.contains_key(name), "{name}() isn't declared in src/bindings.rs");
    }
    for name in between(&text, "typedef struct ", "{").filter(|s| !s.contains(';')) {
        assert!(structs.contains_key(name.trim()), "{name} isn't declared in src/bindings.rs");
    }
    let values: Vec<_> = between(&text, "enum {", "}")
        .flat_map(|s| s.split(','))
        .map(|s| s.split('=').next().unwrap().trim().to_owned())
        .collect();
    let path = Path::new(env!("KVC_SYS_INCLUDE")).join("kvc/status.h");
    let status = without(&std::fs::read_to_string(path).unwrap(), "/*", "*/");
    let codes: Vec<_> = between(&status, " X(", ",").map(|s| format!("KVC_{s}")).collect();
    assert!(values.len() >= 6 && codes.len() >= 26);
    for name in values.iter().chain(&codes).filter(|s| !s.is_empty()) {
        assert!(constants.iter().any(|c| c.0 == *name), "{name} isn't declared in src/bindings.rs");
    }
}
