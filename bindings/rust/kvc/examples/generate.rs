// SPDX-License-Identifier: MIT
//! `generate MODEL PROMPT [POLICY [N [SEED]]]`: continues PROMPT by N tokens (32) under POLICY
//! (quant8), greedily, or with SEED at temperature 0.8. Prints the stack, the tokens, their text and a
//! hash of all logits (FNV-1a, 64 bits, over the bytes of the floats), as its twins in C and Go do.

use kvc::{Model, Params, Sampler, Session, TextFlags};
use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

const USAGE: &str = "usage: generate MODEL PROMPT [POLICY [N [SEED]]]";

fn fnv1a(hash: u64, logits: &[f32]) -> u64 {
    logits
        .iter()
        .flat_map(|x| x.to_ne_bytes())
        .fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn run(args: &[OsString]) -> Result<(), Box<dyn Error>> {
    let word = |i: usize| args.get(i).map(|s| s.to_string_lossy());
    let (path, text) = (args.get(1).ok_or(USAGE)?, word(2).ok_or(USAGE)?);
    let policy = word(3).unwrap_or("quant8".into());
    let n = word(4).map_or(Some(32), |s| s.parse().ok());
    let n =
        n.filter(|n| (1..=1_000_000).contains(n)).ok_or("N must be a number from 1 to 1000000")?;
    let mut params = Params::new();
    if let Some(seed) = word(5) {
        params = params.temperature(0.8).seed(seed.parse()?);
    }

    let model = Model::open(path, &params)?;
    let mut session = Session::open(&model, &policy, &params)?;
    let mut sampler = Sampler::new(&params)?;
    let prompt = model.tokenize(&text, TextFlags::BOS)?;
    println!("stack {}", session.spec());

    let (mut tokens, mut hash) = (Vec::new(), 0xcbf2_9ce4_8422_2325);
    let mut generate = session.generate(&mut sampler, &prompt);
    for _ in 0..n {
        match generate.next() {
            Some(token) => tokens.push(token?),
            None => break,
        }
        hash = fnv1a(hash, generate.logits().unwrap_or_default());
    }

    print!("tokens");
    tokens.iter().for_each(|token| print!(" {token}"));
    print!("\ntext ");
    io::stdout().write_all(&model.detokenize(&tokens, TextFlags::SPECIAL)?)?;
    println!("\nlogits {hash:016x}");
    Ok(())
}

fn main() -> ExitCode {
    match run(&env::args_os().collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate: {error}");
            ExitCode::FAILURE
        }
    }
}
