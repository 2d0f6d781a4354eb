// SPDX-License-Identifier: MIT
//! The crate as a program uses it, on a tiny model: KVC_TEST_MODELS is the directory that ctest fills.

use kvc::{
    ChatFlags, Message, Model, Params, Run, Sampler, Session, Status, TextFlags, Token, Want,
};
use std::ops::Bound;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

fn model_path() -> PathBuf {
    let dir = std::env::var_os("KVC_TEST_MODELS").expect("KVC_TEST_MODELS: where tiny models are");
    PathBuf::from(dir).join("tiny-q4_0.gguf")
}

fn model() -> Model {
    Model::open(model_path(), &Params::new()).unwrap()
}

fn session(model: &Model, spec: &str) -> Session {
    Session::open(model, spec, &Params::new()).unwrap()
}

fn prompt(n: i32) -> Vec<Token> {
    (0..n).map(|i| 20 + i % 50).collect()
}

fn scratch(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(format!("{name}-{}", std::process::id()))
}

/// The status and the sentence, which must say something.
fn error<T: std::fmt::Debug>(result: kvc::Result<T>) -> (Status, String) {
    let e = result.unwrap_err();
    assert!(e.text().len() > 5 && e.to_string() == e.text());
    (e.status(), e.text().to_owned())
}

#[test]
fn the_library_is_the_crate_s_version() {
    assert_eq!(kvc::version(), env!("CARGO_PKG_VERSION"));
    assert!(["scalar", "avx2", "avx512"].contains(&kvc::cpu_level()));
    assert_eq!(Status::BUSY.code(), -11);
    assert_eq!(format!("{:?}: {}", Status::FULL, Status::FULL), "KVC_E_FULL(-10): context is full");
}

#[test]
fn errors_say_what_and_where() {
    let (status, text) = error(Model::open("/no/such/model.gguf", &Params::new()));
    assert_eq!(status, Status::NOT_FOUND);
    assert!(text.contains("/no/such/model.gguf"), "{text}");
    let (status, text) = error(Model::open(model_path(), &Params::new().set("n_threadz", 1)));
    assert!(status == Status::PARAM && text.contains("n_threadz"), "{text}");
    assert_eq!(error(Model::from_bytes(b"GGUF", &Params::new())).0, Status::FORMAT);
    let m = model();
    let open = |spec: &str, params: &Params| error(Session::open(&m, spec, params));
    let (status, text) = open("window:siz=64", &Params::new());
    assert!(status == Status::PARAM && text.contains("siz"), "{text}");
    assert_eq!(open("quant8+quant4", &Params::new()).0, Status::CONFLICT);
    assert_eq!(open("no_such", &Params::new()).0, Status::NOT_FOUND);
    assert_eq!(open("full", &Params::new().compute("f64")).0, Status::PARAM);
    assert_eq!(error(Sampler::new(&Params::new().temperature(-1.0))).0, Status::PARAM);
    assert_eq!(error(m.detokenize(&[1 << 20], TextFlags::PLAIN)).0, Status::RANGE);
}

#[test]
fn a_nul_byte_is_refused_where_c_would_stop_reading() {
    let m = model();
    let ours = Params::new();
    for (status, text) in [
        error(Model::open("a\0b", &ours)),
        error(Session::open(&m, "full\0quant8", &ours)),
        error(Session::load(&m, "a\0b", &ours)),
        error(session(&m, "full").save("a\0b")),
        error(Sampler::new(&Params::new().set("see\0d", 1))),
        error(Sampler::new(&Params::new().set("seed", "1\0"))),
        error(kvc::policies(&Params::new().policy_dir("a\0b"))),
    ] {
        assert!(status == Status::ARG && text.contains("NUL"), "{text}");
    }
    // Text of a model has a length.
    let tokens = m.tokenize("a\0b", TextFlags::PLAIN).unwrap();
    assert_eq!(m.detokenize(&tokens, TextFlags::PLAIN).unwrap(), b"a\0b");
}

#[test]
fn paths_need_not_be_utf8() {
    use std::os::unix::ffi::OsStringExt;
    let path = |name: &[u8]| PathBuf::from(std::ffi::OsString::from_vec(name.to_vec()));
    let dir = scratch("bytes");
    std::fs::create_dir_all(&dir).unwrap();
    let copy = dir.join(path(b"\xff\xfe.gguf"));
    std::fs::copy(model_path(), &copy).unwrap();
    let m = Model::open(&copy, &Params::new()).unwrap();
    let saved = dir.join(path(b"\xff.kvc"));
    let mut s = session(&m, "full");
    s.decode(&[1, 2, 3]).unwrap();
    s.save(&saved).unwrap();
    assert_eq!(Session::load(&m, &saved, &Params::new()).unwrap().n_past(), 3);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_model_says_what_it_is() {
    let m = Model::open(model_path(), &Params::new().n_threads(2)).unwrap();
    let info = m.info();
    assert_eq!((info.arch.as_str(), info.n_threads), ("llama", 2));
    assert!(info.n_vocab > 256 && info.n_param > 1000 && info.fingerprint.len() == 32);
    assert_eq!(info.file_bytes, std::fs::metadata(model_path()).unwrap().len());
    let bytes = std::fs::read(model_path()).unwrap();
    let same = Model::from_bytes(&bytes, &Params::new()).unwrap();
    assert_eq!(same.info().fingerprint, info.fingerprint);
    assert!(m.is_end(info.eos.unwrap()) && !m.is_end(30) && !m.is_end(-1));
}

#[test]
fn text_comes_back_and_in_pieces() {
    let m = model();
    let text = "Zoë spent 3 € on a 🍎.\n";
    let tokens = m.tokenize(text, TextFlags::PLAIN).unwrap();
    assert_eq!(m.detokenize(&tokens, TextFlags::TRIM).unwrap(), text.as_bytes());
    let mut stream = m.text_stream();
    let pieces: Vec<_> = tokens.iter().map(|t| stream.push(*t).unwrap()).collect();
    assert_eq!(pieces.concat(), text);
    assert_eq!(stream.finish(), "");
    // The tiny vocabulary spreads the apple over several tokens.
    assert!(pieces.iter().any(String::is_empty));
    let apple = m.tokenize("🍎", TextFlags::PLAIN).unwrap();
    assert_eq!(stream.push(apple[0]).unwrap(), "");
    assert_eq!((stream.finish().as_str(), stream.finish().as_str()), ("\u{fffd}", ""));
    assert!(m.tokenize("", TextFlags::PLAIN).unwrap().is_empty());
    assert!(m.detokenize(&[], TextFlags::PLAIN).unwrap().is_empty());
    let bos = m.tokenize("a", TextFlags::BOS | TextFlags::SPECIAL).unwrap();
    assert!(bos.len() <= 2 && bos.ends_with(&m.tokenize("a", TextFlags::PLAIN).unwrap()));
}

#[test]
fn calls_that_fail_leave_the_session_as_it_was() {
    let m = model();
    let mut s = Session::open(&m, "quant8", &Params::new().n_ctx(100)).unwrap();
    assert!(s.logits(0).is_none());
    assert_eq!(s.decode(&prompt(70)).unwrap().len(), m.info().n_vocab as usize);
    assert_eq!(error(s.decode(&[]).map(<[f32]>::len)).0, Status::ARG);
    assert_eq!(error(s.prefill(&[])).0, Status::ARG);
    let (status, text) = error(s.decode(&[5, 1 << 20]).map(<[f32]>::len));
    assert!(status == Status::RANGE && text.contains("index 1"), "{text}");
    assert_eq!(error(s.decode(&prompt(31)).map(<[f32]>::len)).0, Status::FULL);
    assert_eq!(error(s.truncate(71)).0, Status::RANGE);
    assert_eq!(s.n_past(), 70);
    s.prefill(&prompt(30)).unwrap();
    assert!(s.logits(0).is_none());
    s.truncate(0).unwrap();
    assert_eq!((s.n_past(), s.stats().unwrap().n_ctx), (0, 100));
}

#[test]
fn generating_stops_at_the_end_of_the_context() {
    let m = model();
    let mut s = Session::open(&m, "full", &Params::new().n_ctx(80)).unwrap();
    // By chance, so that no end of text comes first.
    let mut sampler = Sampler::new(&Params::new().temperature(1.0).seed(3)).unwrap();
    let p = prompt(70);
    let mut generate = s.generate(&mut sampler, &p);
    let tokens: Vec<_> = generate.by_ref().collect();
    assert!(generate.next().is_none() && generate.next().is_none());
    // 70 + 10 are held; the 11th is picked and doesn't fit.
    assert_eq!(tokens.len(), 12);
    assert_eq!(error(tokens[11].clone()).0, Status::FULL);
    assert!(tokens[..11].iter().all(Result::is_ok));
    assert_eq!(s.n_past(), 80);
    let none = s.generate(&mut sampler, &[]).collect::<Vec<_>>();
    assert_eq!((none.len(), error(none[0].clone()).0), (1, Status::ARG));
}

#[test]
fn the_iterator_is_the_loop() {
    let m = model();
    let p = prompt(70);
    let (mut a, mut b) = (session(&m, "quant8"), session(&m, "quant8"));
    let sampler = || Sampler::new(&Params::new().temperature(1.0).seed(3)).unwrap();
    let (mut x, mut y) = (sampler(), sampler());
    let mut tokens = p.clone();
    let mut generate = a.generate(&mut x, &p);
    assert!(generate.logits().is_none());
    for _ in 0..8 {
        let logits = b.decode(&tokens).unwrap();
        let token = y.sample(logits).unwrap();
        assert_eq!(generate.next(), Some(Ok(token)));
        assert_eq!(generate.logits(), Some(logits));
        tokens = vec![token];
    }
    assert_eq!((a.n_past(), a.model().info().n_vocab), (77, m.info().n_vocab));
}

#[test]
fn a_canceller_stops_a_call_of_another_thread() {
    let m = model();
    let mut s = Session::open(&m, "full", &Params::new().n_ctx(8192)).unwrap();
    s.decode(&prompt(3)).unwrap();
    let stop = s.canceller();
    // Until the call is cancelled: begun before or after, one of the two is.
    let worker = thread::spawn(move || {
        let result = s.prefill(&prompt(8000));
        (s, result)
    });
    thread::sleep(Duration::from_millis(5));
    stop.cancel();
    let (mut s, result) = worker.join().unwrap();
    assert_eq!((error(result).0, s.n_past()), (Status::CANCELLED, 3));
    s.decode(&[4]).unwrap();
    stop.clone().cancel(); // the next one
    assert_eq!(error(s.decode(&[5]).map(<[f32]>::len)).0, Status::CANCELLED);
    drop(s);
    stop.cancel();
}

#[test]
fn handles_drop_in_any_order() {
    let m = model();
    let stream = m.text_stream();
    let mut s = session(&m, "quant8");
    drop(m);
    s.decode(&prompt(70)).unwrap();
    let mut fork = s.fork().unwrap();
    drop(s);
    fork.decode(&[7]).unwrap();
    assert_eq!(fork.n_past(), 71);
    drop(fork);
    assert!(stream.clone().push(30).is_ok());
}

#[test]
fn sessions_move_between_threads_and_models_are_shared() {
    fn send<T: Send>(_: &T) {}
    fn sync<T: Send + Sync>(_: &T) {}
    let m = model();
    let s = session(&m, "full");
    send(&s);
    send(&Sampler::new(&Params::new()).unwrap());
    sync(&m);
    sync(&s.canceller());
    sync(&Params::new());
    let rows: Vec<_> = (0..4)
        .map(|_| {
            let m = m.clone();
            thread::spawn(move || session(&m, "full").decode(&prompt(70)).unwrap().to_vec())
        })
        .collect();
    let rows: Vec<_> = rows.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(rows.iter().all(|row| *row == rows[0]));
}

#[test]
fn many_sessions_are_decoded_together() {
    let m = model();
    let (mut a, mut b, mut c) = (session(&m, "full"), session(&m, "quant8"), session(&m, "full"));
    let alone = session(&m, "full").decode(&prompt(70)).unwrap().to_vec();
    let (p, flags) = (prompt(70), [true, false, true]);
    let mut runs = [
        Run::new(&mut a, &p),
        Run::new(&mut b, &[1, 2, 3]).want(Want::List(&flags)),
        Run::new(&mut c, &[1, 1 << 20]).want(Want::All),
    ];
    assert_eq!(error(runs[0].result()).0, Status::ARG);
    assert_eq!(error(kvc::decode(&mut runs)).0, Status::RANGE);
    assert_eq!((runs[0].result(), runs[1].result()), (Ok(1), Ok(2)));
    assert_eq!(error(runs[2].result()).0, Status::RANGE);
    assert_eq!(runs[0].logits(0), Some(&alone[..]));
    assert!(runs[1].logits(1).is_some() && runs[1].logits(2).is_none());
    assert_eq!((a.n_past(), b.n_past(), c.n_past()), (70, 3, 0));
    assert_eq!(kvc::decode(&mut []), Ok(()));
    let short = Run::new(&mut a, &[1, 2, 3]).want(Want::List(&flags[..2]));
    assert_eq!(error(kvc::decode(&mut [short])).0, Status::ARG);
    let mut other = session(&model(), "full");
    let mut mixed = [Run::new(&mut a, &[1]), Run::new(&mut other, &[1]).want(Want::None)];
    assert_eq!(error(kvc::decode(&mut mixed)).0, Status::ARG);
}

#[test]
fn a_saved_session_goes_on_with_the_same_bits() {
    let m = model();
    let path = scratch("saved");
    let mut s = session(&m, "window:size=64+quant8");
    s.decode(&prompt(150)).unwrap();
    s.save(&path).unwrap();
    let mut fork = s.fork().unwrap();
    let mut loaded = Session::load(&m, &path, &Params::new()).unwrap();
    let want = s.decode(&[9]).unwrap();
    assert_eq!(fork.decode(&[9]).unwrap(), want);
    assert_eq!(loaded.decode(&[9]).unwrap(), want);
    assert_eq!(loaded.spec(), fork.spec());
    std::fs::write(&path, b"KVC").unwrap();
    assert_eq!(error(Session::load(&m, &path, &Params::new())).0, Status::FORMAT);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(error(Session::load(&m, &path, &Params::new())).0, Status::NOT_FOUND);
    assert_eq!(error(s.save("/no/such/dir/file")).0, Status::IO);
}

#[test]
fn figures_are_those_of_the_session() {
    let m = model();
    let mut s = session(&m, "window:size=64:sinks=4+quant8");
    s.decode(&prompt(300)).unwrap();
    let stats = s.stats().unwrap();
    assert_eq!((stats.n_past, stats.n_stage, stats.n_computed), (300, 2, 300));
    assert!(stats.kv_bytes > 0 && stats.compute_ns > 0);
    let stages = s.stages().unwrap();
    assert_eq!((stages[0].name.as_str(), stages[1].name.as_str()), ("window", "quant8"));
    assert!(stages[1].payload_bytes > 0 && stages[1].path.ends_with("quant8.so"));
    assert!(s.spec().starts_with("window:size=64:sinks=4"));
}

#[test]
fn a_loaded_session_says_what_it_is_about() {
    let m = model();
    let path = scratch("about");
    let mut s = Session::open(&m, "window:size=64", &Params::new().compute("f32")).unwrap();
    assert_eq!(s.tokens(..), Ok(vec![]));
    let p = prompt(300);
    s.decode(&p).unwrap();
    s.save(&path).unwrap();
    let s = Session::load(&m, &path, &Params::new()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut whole = session(&m, "full");
    whole.decode(&p).unwrap();
    assert!(s.stats().unwrap().n_entry < whole.stats().unwrap().n_entry);
    // What the window has given up too.
    assert_eq!(s.tokens(..).unwrap(), p);
    assert_eq!(s.tokens(290..).unwrap(), p[290..]);
    assert_eq!(s.tokens(..=1).unwrap(), p[..2]);
    assert_eq!(s.tokens((Bound::Excluded(7), Bound::Excluded(9))).unwrap(), p[8..9]);
    assert!(s.tokens(0..0).unwrap().is_empty() && s.tokens(300..).unwrap().is_empty());
    assert_eq!(s.stats().unwrap().compute, kvc::KVC_COMPUTE_F32);
    assert_eq!(session(&m, "").stats().unwrap().compute, kvc::KVC_COMPUTE_INT8);
}

#[test]
fn tokens_beyond_the_session_are_refused() {
    let m = model();
    let mut s = session(&m, "full");
    s.decode(&prompt(70)).unwrap();
    s.decode(&[]).unwrap_err(); // its sentence is another
    let (start, end) = (9, 4);
    let refused = [
        error(s.tokens(0..71)),
        error(s.tokens(71..)),
        error(s.tokens(69..=u32::MAX)),
        error(s.tokens((Bound::Excluded(u32::MAX), Bound::Unbounded))),
        error(s.tokens(start..end)),
    ];
    for (status, text) in refused {
        assert!(status == Status::RANGE && text.contains("the 70 tokens"), "{text}");
    }
}

#[test]
fn weights_that_stay_in_the_file_give_the_same_bits() {
    let left = Params::new().repack(false);
    let (status, text) = error(Model::from_bytes(&std::fs::read(model_path()).unwrap(), &left));
    assert!(status == Status::UNSUPPORTED && text.contains("repack=0"), "{text}");
    let m = Model::open(model_path(), &left).unwrap();
    let want = session(&model(), "full").decode(&prompt(70)).unwrap().to_vec();
    assert_eq!(session(&m, "full").decode(&prompt(70)).unwrap(), want);
    assert!(Model::open(model_path(), &Params::new().repack(true)).is_ok());
}

#[test]
fn policies_are_listed() {
    let found = kvc::policies(&Params::new().policy_env(false)).unwrap();
    assert!(found.path.contains("kvc/policies"));
    let window = found.list.iter().find(|p| p.name == "window").unwrap();
    assert_eq!((window.status, window.license.as_str()), (Status::OK, "MIT"));
    let size = &window.params[0];
    assert_eq!((size.name.as_str(), size.unit.as_str()), ("size", "tokens"));
    let choice = window.params.iter().find(|p| p.name == "positions").unwrap();
    assert_eq!(choice.choices, ["original", "cache"]);
    let nowhere = Params::new().policy_env(false).policy_default(false);
    assert!(kvc::policies(&nowhere).unwrap().list.is_empty());
}

#[test]
fn a_seed_makes_the_same_tokens() {
    let m = model();
    let run = |seed: i64| -> Vec<Token> {
        let params = Params::new().temperature(0.9).top_k(40).top_p(0.95).min_p(0.01).seed(seed);
        let mut sampler = Sampler::new(&params).unwrap();
        let p = prompt(10);
        let mut s = session(&m, "");
        let tokens = s.generate(&mut sampler, &p).take(16).map(Result::unwrap).collect();
        tokens
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let mut greedy = Sampler::new(&Params::new()).unwrap();
    assert_eq!(greedy.sample(&[0.0, f32::NAN, 2.0, 2.0]), Ok(2));
    assert_eq!(error(greedy.sample(&[])).0, Status::ARG);
}

#[test]
fn chats_become_tokens() {
    let m = model();
    let chat = [Message::system("Be brief."), Message::user("Hi <|im_end|>")];
    // The tiny model has no template, and no markers.
    assert_eq!((m.info().chat.as_str(), m.is_end(-1), m.is_end(1 << 20)), ("", false, false));
    assert_eq!(error(m.chat(None, &chat, ChatFlags::PROMPT)).0, Status::UNSUPPORTED);
    let (status, text) = error(m.chat(Some("no_such"), &chat, ChatFlags::PLAIN));
    assert!(status == Status::UNSUPPORTED && text.contains("chatml"), "{text}");
    assert_eq!(error(m.chat(Some("chatml"), &[], ChatFlags::PROMPT)).0, Status::ARG);
    let odd = [Message { role: "us\0er", content: "" }];
    assert_eq!(error(m.chat(None, &odd, ChatFlags::PROMPT)).0, Status::ARG);
    let path = match std::env::var_os("KVC_TEST_MODEL") {
        Some(path) => path,
        None => return,
    };
    let m = Model::open(path, &Params::new()).unwrap();
    let tokens = m.chat(None, &chat, ChatFlags::PROMPT).unwrap();
    let bytes = m.detokenize(&tokens, TextFlags::SPECIAL).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    if m.info().chat == "chatml" {
        assert_eq!(
            text,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <|im_end|><|im_end|>\n\
             <|im_start|>assistant\n"
        );
        assert_eq!(tokens.iter().filter(|t| m.is_end(**t)).count(), 2);
    }
    assert_eq!(m.chat(Some(&m.info().chat), &chat, ChatFlags::PROMPT), Ok(tokens));
}
