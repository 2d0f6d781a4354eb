#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tests/make_vocab.py: writes tests/data/tokenizers.json: vocabularies trained for the tests, and the
ids that other implementations give for difficult texts. Needs the PyPI packages tokenizers,
sentencepiece and protobuf; the tests need the file alone.

What is trained sees whole lines, so that its merges cross every boundary that a pre-tokenizer may
cut at: a wrong cut changes ids."""
import io
import json
import os
import random
import re
import tempfile

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
DATA = os.path.join(HERE, "data")

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# ---------------------------------------------------------------- texts

MORE = [
    # contractions in every case, and what only looks like one
    "I'M he'D THEY'RE we'Ve You'LL it'S can'T", "x'Re'rE'RE", "'s'S's", "a'sb a'Sb", "'\u017f '\u017fx it'\u017f",
    "'K '\u212a", "don\u2019T", "'LLama 'llama", "'tis 'twas 'Twas", "\u00e9's \u00c9'S", "1's 2'S", "''D",
    # letters behind one other character
    "$abc _abc .abc  abc\tabc\u00a0abc", "(word) [word] {word}", "\u00bfqu\u00e9? \u00a1s\u00ed!", "!\u0301a !a\u0301", "\u200dword",
    "x=y; x+=y; x==y", "a\u0301b\u0301c\u0301", "\u0301\u0301\u0301", "\u0915\u094d\u0937\u0947\u0924\u094d\u0930",
    # digits in ones, threes and more, of several scripts
    "1 12 123 1234 12345 123456 1234567", "007", "3.14159", "1,234,567.89", "2024-01-31T23:59:59Z", "0x1F600",
    "\u0661\u0662\u0663\u0664", "\u0967\u0968\u0969\u096a", "\u00b2\u00b3\u00b9\u2074", "\u2160\u2161\u2162\u2163", "1\u00bd2\u00bc", "v1.2.3-rc4", "\U0001d7ce\U0001d7cf\U0001d7d0\U0001d7d1",
    # line ends and what is before and behind them
    "a\nb", "a \nb", "a\n b", "a \n b", "a\r\nb", "a\rb", "\r", "\r\r\n\n", " \n \n ", "\t\n\t", "x.\n", "x.\n\n", "x .\n\ny",
    "...\r\n...", "!\n\n\n?", "a\u2028b", "a\u0085b", "a\u000bb\u000cc", "\n\u00a0\n", "\u3000\n\u3000", "a  \n\n  b", "x\n   ", "   \nx", "/\n", "//\n\n",
    # spaces
    "    four", "     five", "a    b", "a     b", "\t\t\tthree", " \t \t ", "trailing ", "trailing  ", "trailing\t", " both ", "\u00a0\u00a0x",
    "\u2002\u2003\u2009", "x\u00a0 y", "x \u00a0y",
    # the mark that SentencePiece writes for a space, and its bytes' tokens
    "\u2581", "\u2581\u2581", "a\u2581b", "x\u2581 y", "\u2581x \u2581y", "<0x0A>", "<0xE2><0x96><0x81>", "<unk>", "<s>", "</s>", "<s>x</s>", " <s> x",
    # special tokens among text
    "<|im_start|>assistant\nSure!<|im_end|>", "a<think>b</think>c", " <think> x </think> ", "<think>", "<think><think>", "<think", "think>",
    "x<|im_end|>", "<|im_end|>x", "<|im_end|> x", "<|im_end|>  x", "x <|im_end|>", "<|im_end|>\n", "\n<|im_end|>", "<|im_end|><think>y",
    "<think>\n\n</think>\n\n", "\n\n\n\n\n", "\n\n\nx", "x\n\n\n\n",
    # names, addresses, code
    "camelCaseName PascalCase HTTPServer iOS XMLHttpRequest", "aB AB Ab ab aBC ABc", "\u01c5\u01c8 \u02b0\u02b1", "\u00c0\u00e9\u00ce\u00f5 \u00d1and\u00fa", "\u65e5\u672cABCabc\u65e5",
    "https://example.org:8080/a/b?c=d&e=%20#f", "mailto:first.last+tag@sub.example.co.uk", "ftp://[::1]/x", "user@host:~$ ls -la | wc -l",
    "int main(void) { return 0; }\n", "#define X(a, b) ((a) + (b)) /* sum */\n", "fn f<'a>(x: &'a str) -> Option<&'a str> { None }",
    "x = [i**2 for i in range(10) if i % 2]", "\\begin{equation} e^{i\\pi} + 1 = 0 \\end{equation}", "<?php echo $x[\"k\"]; ?>", "if(a&&b||!c){}",
    # scripts
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5", "\u0540\u0561\u0575\u0565\u0580\u0565\u0576", "\u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8", "\u1200\u1208\u1213", "mixed \u0440\u0443\u0441 \u4e2d \u05e2\u05d1 \u0639\u0631 \u0e44\u0e17\u0e22 end",
    # emoji: joined, with skin and hair, flags, keycaps, tags
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f9d1\U0001f3fd\u200d\U0001f9b0", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\U0001f1e9\U0001f1ea\U0001f1eb", "#\ufe0f\u20e3 *\ufe0f\u20e3 0\ufe0f\u20e3",
    "\u2764\ufe0f\u200d\U0001f525", "ok\U0001f44d\U0001f3ff!", "\U0001fae8\U0001faf0",
    # what no one has assigned, private, not characters; controls
    "\u0378\u0379", "\U000e0080", "\ue000\uf8ff", "\U000f0000\U0010fffd", "\ufdd0\ufdef", "\ufffe\uffff", "\U0001fffe", "\x00", "a\x00b\x00", "\x00\x00\x00",
    "\x01\x02\x1b[0m", "\x7f\x80\x9f", "\u202eabc\u202c", "\u2066x\u2069", "\ufeff", "\ufeffx\ufeff", "\u00ad", "\ufffd\ufffd",
    # composed and not, wide and narrow, ligatures
    "\u00e9\u0065\u0301", "\uac00\u1100\u1161", "\uff21\uff22\uff41\uff42\uff11\uff12", "\ufb00\ufb03\u0132", "\u1e9e\u00df", "\u0130\u0131", "\u03c2\u03c3", "o\u0308\u0308\u0308", "Z\u0351\u036b\u0343A\u0321\u034eL\u0328\u0331G\u030dO\u0304",
    # long runs
    "a" * 300, "ab" * 150, " " * 200, " " * 199 + "x", "\n" * 150, "\t" * 100, "1" * 100, "." * 200, "\u65e5" * 100, "\u0e01" * 80, "\U0001f600" * 40,
    "A" * 120, "Aa" * 60, "aA" * 60, "'" * 60, "'s" * 40, "a\n" * 50, " a" * 100, "a " * 100, "\u0301" * 60, "\r\n" * 60, "-=" * 70, "\x00" * 50,
]

SPECIAL = {"control": ["<s>", "</s>", "<|im_start|>", "<|im_end|>"], "user": ["<think>", "</think>", "\n\n\n", "   "]}


def make_texts():
    old = json.load(open(os.path.join(DATA, "bpe-small.json")))["cases"]
    texts = [c["text"] for c in old] + MORE
    rng = random.Random(20)
    parts = [p for t in texts for p in re.findall(r"\w+|\s+|[^\w\s]+", t) if len(p) < 9 and "\u2581" not in p]
    texts += ["".join(rng.choices(parts, k=rng.randint(3, 14))) for _ in range(100)]
    return list(dict.fromkeys(texts))


def corpus(texts):
    lines = []
    for name in ("README.md", "CONTRIBUTING.md", "docs/measuring.md", "docs/writing-a-policy.md"):
        lines += open(os.path.join(ROOT, name)).read().splitlines(keepends=True)
    cut = re.compile("|".join(map(re.escape, SPECIAL["control"] + SPECIAL["user"][:2])))
    return [part for line in lines + 3 * texts for part in cut.split(line) if part]


# ---------------------------------------------------------------- byte-level BPE

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# Patterns in sequence, and whether a whole piece that is a token is left whole.
PRE = {
    "llama-bpe": ([LLAMA3], True),
    "qwen2": ([LLAMA3.replace("{1,3}", "")], False),
    "tekken": ([TEKKEN], True),
    "default": ([r"[\p{P}$+<=>^~|]+",
                 r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
                 r"\p{N}+", r"[0-9][0-9][0-9]"], False),
}
# Tokens that no merge makes: found only where a whole piece is looked up.
WHOLE = [" lowercase", "supercalifragilisticexpialidocious", "\u65e5\u672c\u8a9e", "123", "'Re", ".\n\n", "     ", "\U0001f600"]


def to_alphabet():
    moved, out = 256, {}
    for b in range(256):
        plain = 0x20 < b < 0x7f or (b > 0xa0 and b != 0xad)
        out[b] = chr(b if plain else moved)
        moved += not plain
    return out


def make_bpe(texts):
    letters = to_alphabet()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = byte_level
    t.train_from_iterator(corpus(texts), trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=list(letters.values()), show_progress=False, max_token_length=24))
    model = json.loads(t.to_str())["model"]
    tokens = [x for x, _ in sorted(model["vocab"].items(), key=lambda x: x[1])]
    merges = [tuple(m) for m in model["merges"]]
    tokens += [x for x in ("".join(letters[b] for b in w.encode()) for w in WHOLE) if x not in model["vocab"]]
    n = len(tokens)
    out = {"tokens": tokens + SPECIAL["control"] + SPECIAL["user"],
           "types": [NORMAL] * n + [CONTROL] * len(SPECIAL["control"]) + [USER] * len(SPECIAL["user"]),
           "merges": [" ".join(m) for m in merges], "ids": {}}
    assert len(set(out["tokens"])) == len(out["tokens"])
    for name, (patterns, whole) in PRE.items():
        t = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(tokens)}, merges=merges, ignore_merges=whole))
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns] + [byte_level])
        add_special(t)
        out["ids"][name] = [t.encode(x, add_special_tokens=False).ids for x in texts]
    return out


def add_special(t):
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in SPECIAL["control"]])
    t.add_tokens([AddedToken(x, special=False, normalized=False) for x in SPECIAL["user"]])


# ---------------------------------------------------------------- SentencePiece

SPM = {
    # as Llama 2 has it
    "llama": dict(byte_fallback=True, character_coverage=0.98, split_digits=True, allow_whitespace_only_pieces=True),
    # as Gemma has it
    "gemma": dict(byte_fallback=True, character_coverage=0.98, split_digits=True, allow_whitespace_only_pieces=True, add_dummy_prefix=False,
                  user_defined_symbols=[x.replace(" ", "\u2581") for x in SPECIAL["user"]]),
    # tokens across words
    "words": dict(byte_fallback=True, split_by_whitespace=False, split_by_unicode_script=False, split_by_number=False),
    # unknown characters, white space taken out
    "unknown": dict(remove_extra_whitespaces=True, character_coverage=0.98),
}


def make_spm(texts):
    out = []
    for name, options in SPM.items():
        model = io.BytesIO()
        options = dict(dict(remove_extra_whitespaces=False), **options)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(x for x in corpus(texts) if "\x00" not in x), model_writer=model, model_type="bpe", vocab_size=1500,
            normalization_rule_name="identity", hard_vocab_limit=False, max_sentence_length=100000,
            minloglevel=2, **options)
        sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        proto = model_pb2.ModelProto.FromString(model.getvalue())
        out.append({"name": name, "prefix": proto.normalizer_spec.add_dummy_prefix,
                    "collapse": proto.normalizer_spec.remove_extra_whitespaces,
                    "tokens": [p.piece for p in proto.pieces], "types": [p.type for p in proto.pieces],
                    "scores": [p.score for p in proto.pieces], "ids": [sp.encode(x) for x in texts]})
    return out


def make_added(spm, texts):
    """A vocabulary of SentencePiece with added tokens, by the package tokenizers: what begins a text
    or follows an added token has a space in front."""
    tokens = spm["tokens"]
    ids = {x: i for i, x in enumerate(tokens)}
    merges = []
    for i, piece in enumerate(tokens):
        splits = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        merges += [(-spm["scores"][i], ids[a], ids[b], (a, b)) for a, b in splits
                   if spm["types"][i] == NORMAL and a in ids and b in ids]
    t = Tokenizer(models.BPE(vocab=ids, merges=[m[3] for m in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    add_special(t)
    tokens = tokens + [x for x in SPECIAL["control"] + SPECIAL["user"] if x not in ids]
    types = spm["types"] + [NORMAL] * (len(tokens) - len(spm["types"]))
    types = [CONTROL if x in SPECIAL["control"] else USER if x in SPECIAL["user"] else k for x, k in zip(tokens, types)]
    return {"tokens": tokens, "types": types, "scores": spm["scores"] + [0.0] * (len(tokens) - len(spm["scores"])),
            "name": "added", "prefix": True, "collapse": False,
            "ids": [t.encode(x, add_special_tokens=False).ids for x in texts]}


def main():
    texts = make_texts()
    bpe = make_bpe(texts)
    spm = make_spm(texts)
    spm.append(make_added(spm[0], texts))
    source = (f"ids by the PyPI packages tokenizers {tokenizers.__version__} (bpe; spm 'added') and "
              f"sentencepiece {sentencepiece.__version__} (spm), made by tests/make_vocab.py")
    with open(os.path.join(DATA, "tokenizers.json"), "w") as f:
        dump = lambda x: json.dumps(x, separators=(",", ":"))
        f.write('{"source":' + dump(source) + ',\n"texts":[\n' + ",\n".join(map(dump, texts)) + '],\n"bpe":' + dump(bpe) +
                ',\n"spm":[\n' + ",\n".join(map(dump, spm)) + "]}\n")


main()
