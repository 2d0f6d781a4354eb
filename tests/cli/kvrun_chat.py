#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Drives kvrun in a pseudo-terminal, as a person would: messages, Ctrl-C, commands, sessions. The
# model is a tiny one with random weights, whose end tokens are made impossible where an answer is
# to go on until Ctrl-C. Needs the package gguf.
"""kvrun_chat.py KVRUN MODEL-F32.gguf [plain]: kvrun in a terminal; plain: built without libedit."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

from gguf import GGUFReader

TOOL, MODEL, PLAIN = sys.argv[1], sys.argv[2], "plain" in sys.argv[3:]
SLOW = int(os.environ.get("SLOW", 120))  # seconds that a sanitizer may take on a busy machine
LINE = r"(?:^|\n|\x1b\[\?2004h)"  # where a prompt stands
FIGURES = r"\r\n\S*\[\d+ \+ \d+ tokens, [^]]*\]"
BASE = ["--chat-template", "chatml"]
failed = 0


def check(what, holds, *seen):
    global failed
    if not holds:
        failed += 1
        print("FAILED:", what, *[repr(s) for s in seen], sep="\n    ", flush=True)


class Terminal:
    """A process in a terminal of 80 columns. What it writes is collected in .text."""

    def __init__(self, *arguments, model=MODEL, env=None, limit=None):
        self.text, self.seen, self.code = "", 0, None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm", "LC_ALL": "C.UTF-8", **(env or {})})
            command = [TOOL, "-m", model, *arguments]
            if limit:
                command = ["sh", "-c", f"trap '' XFSZ; ulimit -f {limit}; exec \"$@\"", "sh",
                           *command]
            os.execvp(command[0], command)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.fd)

    def read(self, seconds):
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.text += data.decode(errors="surrogateescape")
        return bool(data)

    def until(self, pattern):
        """Waits for a regular expression in what wasn't looked at yet; returns what was before."""
        end = time.monotonic() + SLOW
        while True:
            found = re.compile(pattern, re.S).search(self.text, self.seen)
            if found:
                before = self.text[self.seen:found.start()]
                self.seen = found.end()
                return before
            if time.monotonic() > end or not self.read(1) and self.ended():
                check(f"{pattern} comes", False, self.text[-600:])
                raise SystemExit(1)

    def ended(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def send(self, text):
        data = text.encode()
        while data:
            self.read(0)
            data = data[os.write(self.fd, data[:512]):]

    def prompt(self):
        """What came before the next prompt."""
        before = self.until(LINE + "> ")
        self.raw()
        return before

    def raw(self):
        """Waits for the mode in which keys are read, which comes behind a prompt: what is sent
        before is taken as a line."""
        end = time.monotonic() + SLOW
        while not PLAIN and termios.tcgetattr(self.fd)[3] & termios.ICANON:
            if time.monotonic() > end:
                check("keys are read", False)
                break
            time.sleep(0.001)

    def ask(self, message):
        """Sends a message; returns the answer."""
        self.send(message + "\r")
        self.until(re.escape(message.split("\r")[-1]) + r"\r*\n")
        return self.until(FIGURES)

    def end(self, code):
        """Waits for the end; the terminal must be as it was."""
        after = termios.tcgetattr(self.fd)
        end = time.monotonic() + SLOW
        while self.read(0.05) or not self.ended():
            after = self.attributes(after)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                check("it ends", False, self.text[-600:])
                break
        check(f"exit code {code}", self.code == code, self.code, self.text[-600:])
        check("terminal as before", after[:4] == self.before[:4], after, self.before)
        os.close(self.fd)

    def attributes(self, last):
        try:
            return termios.tcgetattr(self.fd)
        except termios.error:
            return last


def endless(directory):
    """A model that never ends: nothing is near the special tokens."""
    path = os.path.join(directory, "endless.gguf")
    shutil.copy(MODEL, path)
    reader = GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            tensor.data[0:3] = 0
    reader.data.flush()
    return path


def once(*arguments, model=MODEL):
    """A run without a terminal: its JSON."""
    run = subprocess.run([TOOL, "-m", model, *arguments, "-o", "json"], stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
    return json.loads(run.stdout)


def as_shown(text):
    """A text as a terminal gets it: no control characters, line ends with a return."""
    text = re.sub("\r(?!\n)|[\0-\b\v\f\x0e-\x1f\x7f-\x9f]", "\ufffd", text)
    return re.sub("\r*\n", "\r\n", text)


# ---------------------------------------------------------------- tests


def conversation(tmp):
    t = Terminal(*BASE, "-n", "40")
    head = t.prompt()
    check("a head", "chat template chatml, policy full, context" in head.replace("\r\n", " "), head)
    check("help is offered", "/help" in head, head)
    first = t.ask("hello")
    t.prompt()
    want = once(*BASE, "-n", "40", "-p", "hello")
    check("the answer of one run", first == as_shown(want["text"]), first, want["text"])
    check("another answer", t.ask("and") != "")
    t.prompt()
    for nothing in ("\r", "  \r"):
        t.send(nothing)
        t.prompt()
    t.send("\x04")
    t.end(0)
    check("no word that nobody asked for", "error" not in t.text)


def interrupted(tmp):
    slow = endless(tmp)
    t = Terminal(*BASE, "--ctx", "1000000", "--policy", "window:size=64", model=slow)
    t.prompt()
    t.send("hello\r")
    t.until("hello\r*\n")
    t.until(r"\S{50}")
    t.send("\x03")
    t.until(FIGURES)
    t.prompt()
    # A second one, so that the first left nothing behind.
    t.send("again\r")
    t.until("again\r*\n")
    t.until(r"\S{50}")
    t.send("\x03")
    t.until(FIGURES)
    t.prompt()
    t.send("/stats\r")
    t.until(r"context +\d+ of 1000000 tokens")
    t.prompt()
    t.send("half a li")
    t.until("half a li")
    t.send("\x03")
    t.prompt()
    t.send("\x03")
    check("a word on how to end", "Ctrl-D" in t.prompt())
    t.send("\x03")
    t.end(0)
    # Ctrl-C in a run without a terminal.
    run = subprocess.Popen([TOOL, "-m", slow, "--raw", "-p", "hi", "--ctx", "1000000", "--policy",
                            "window:size=64", "--session", os.path.join(tmp, "cut")],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    shown = os.read(run.stdout.fileno(), 64)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=SLOW)
    check("exit code 130", run.returncode == 130, run.returncode, err)
    check("a last line", b" tokens/s, cache " in err, err)
    check("whole text", (shown + out).decode()[-1] == "\n")
    check("the session is saved", os.path.getsize(os.path.join(tmp, "cut")) > 0)
    more = once("--raw", "-p", "", "-n", "5", "--session", os.path.join(tmp, "cut"), model=slow)
    check("and goes on", len(more["tokens"]) == 5, more)


def typed_ahead(tmp):
    t = Terminal(*BASE, "-n", "6000", "--ctx", "20000", "--policy", "window:size=64",
                 model=endless(tmp))
    t.prompt()
    t.send("hello\r")
    t.until("hello\r*\n")
    t.until(r"\S{50}")
    t.send("\x1b[200~one\rtwo\x1b[201~\r" if not PLAIN else "one two\r")
    answer = t.until(FIGURES)
    check("keys aren't shown in an answer", PLAIN or "two" not in answer)
    t.until(LINE + "> ")
    t.until(r"one.{1,2}two" if not PLAIN else "")
    t.until(FIGURES)
    t.prompt()
    t.send("/stats\r")
    t.until(r"context +12\d\d\d of")
    t.prompt()
    t.send("/exit\r")
    t.end(0)


def unread(tmp):
    long = "the cat sat on the mat\r" * 1500
    t = Terminal(*BASE, "--ctx", "200000", "-n", "20")
    t.prompt()
    t.send("\x1b[200~" + long + "END\x1b[201~")
    t.until("END")
    t.send("\r")
    t.until(r"reading: \d\d+ of ")
    t.send("\x03")
    check("a word on what became of it", "Not read" in t.prompt())
    t.send("/stats\r")
    t.until(r"context +0 of 200000 tokens")
    t.prompt()
    check("as if nothing had been asked", t.ask("hello") ==
          as_shown(once(*BASE, "-n", "20", "-p", "hello")["text"]))
    t.prompt()
    t.send("/exit\r")
    t.end(0)
    # In a run for one prompt.
    path = os.path.join(tmp, "long")
    with open(path, "w") as f:
        f.write(long)
    t = Terminal(*BASE, "--ctx", "200000", "-f", path, "--session", path + ".kvc")
    t.until(r"reading: \d\d+ of ")
    t.send("\x03")
    t.end(130)
    check("nothing to save", not os.path.exists(path + ".kvc"))
    check("a word on it", t.text.replace("\r\n", " ").rstrip().endswith(
        "interrupted while the prompt was read; nothing is saved"), t.text)
    check("no figures", "tokens, first in" not in t.text, t.text)
    t = Terminal(*BASE, "--ctx", "200000", "-f", path, "-o", "json")
    t.until(r"reading: \d\d+ of ")
    t.send("\x03")
    t.end(130)
    check("no token of the prompt", '"prompt_tokens": 0,' in t.text, t.text)


def full(tmp):
    path = os.path.join(tmp, "full.kvc")
    t = Terminal(*BASE, "--ctx", "40", "--session", path, model=endless(tmp))
    t.prompt()
    t.ask("hello")
    t.prompt()
    for message in ("/stats", "more"):
        t.send(message + "\r")
        said = t.prompt().replace("\r\n", " ")
        check("full", ("context  40 of 40 tokens" if message == "/stats" else
                       "the context of 40 tokens is full: begin anew with /clear") in said, said)
    t.send("/clear\r")
    t.prompt()
    check("an answer again", t.ask("hello") != "")
    t.prompt()
    t.send("\x04")
    t.end(0)
    t = Terminal(*BASE, "--session", path, model=endless(tmp))
    t.prompt()
    t.send("more\r")
    check("another session", "name another --session" in t.prompt().replace("\r\n", " "), t.text)
    t.send("\x04")
    t.end(0)


def messages(tmp):
    n = ["-n", "12"]
    two = once(*BASE, *n, "-p", "one \u00e4\ntwo")["text"]
    t = Terminal(*BASE, *n)
    t.prompt()
    t.send("one \u00e4\\\r")
    t.until(LINE + r"\. ")
    t.raw()
    check("a line that goes on", t.ask("two") == as_shown(two), t.text)
    t.prompt()
    t.send("one\\\r")
    t.until(LINE + r"\. ")
    t.raw()
    t.send("\x03")
    t.prompt()
    if not PLAIN:
        t.send("/clear\r")
        t.prompt()
        t.send("\x1b[200~one \u00e4\rtwo\x1b[201~")
        t.until("two")
        t.send("\r")
        t.until(r"\n")
        answer = t.until(FIGURES)
        check("pasted lines are one message", answer == as_shown(two), answer, two)
        t.prompt()
        t.send("x\x1b[A\x1b[A\x01Z")  # the message before, edited
        t.until("Z")
        t.send("\x03")
        t.prompt()
    t.send("\x04")
    t.end(0)


def commands(tmp):
    saved = os.path.join(tmp, "saved")
    t = Terminal(*BASE, "-n", "30", "--policy", "quant8")
    t.prompt()
    first = t.ask("hello")
    t.prompt()
    t.send("/help\r")
    help = t.prompt()
    check("help", all(w in help for w in ("/clear", "/policy", "/stats", "/save", "/exit")), help)
    t.send("/nothing\r")
    check("no such command", "/nothing isn't a command" in t.prompt())
    t.send("/policy\r")
    check("the policy", "quant8:hadamard=on" in t.prompt())
    t.send("/policy no_such\r")
    check("no such policy", "no_such" in t.prompt())
    t.send("/policy window:size=64+quant8\r")
    check("another policy", "tokens under window:size=64" in t.prompt().replace("\r\n", " "))
    t.send("/stats\r")
    check("its stats", "window:size=64" in t.prompt().replace("\r\n", " "))
    t.send("/save\r")
    check("no name", "needs the name" in t.prompt())
    t.send(f"/save {tmp}/none/x\r")
    check("no place", "can't be saved" in t.prompt().replace("\r\n", " "))
    t.send(f"/save {saved}\r")
    check("saved", "--session" in t.prompt().replace("\r\n", " "))
    t.send(f"/save {saved}\r")
    check("saved again", "--session" in t.prompt().replace("\r\n", " "))
    letter = os.path.join(tmp, "letter")
    with open(letter, "w") as f:
        f.write("Dear Ann,\n")
    for path in (letter, tmp):
        t.send(f"/save {path}\r")
        said = t.prompt().replace("\r\n", " ")
        check("no session there", "is there and is not a saved session; name another" in said, said)
    check("the letter is left", open(letter).read() == "Dear Ann,\n")
    t.send("/policy quant8\r")
    t.prompt()
    t.send("/clear\r")
    t.prompt()
    check("a new conversation", t.ask("hello") == first)
    t.prompt()
    t.send("/exit\r")
    t.end(0)
    check("the file", os.path.getsize(saved) > 0)


def sessions(tmp):
    path = os.path.join(tmp, "session")
    how = [*BASE, "-n", "30", "--temp", "1", "--seed", "11", "--policy", "window:size=64+quant8"]
    t = Terminal(*how)
    t.prompt()
    want = []
    for message in ("hello", "and then", "why"):
        want.append(t.ask(message))
        t.prompt()
    t.send("\x04")
    t.end(0)
    t = Terminal(*how, "--session", path)
    t.prompt()
    have = [t.ask("hello")]
    t.prompt()
    t.send("\x04")
    t.end(0)
    have.append(as_shown(once(*how, "--session", path, "-p", "and then")["text"]))
    t = Terminal(*BASE, "-n", "30", "--temp", "1", "--seed", "11", "--session", path)
    check("a word on the session", "goes on" in t.prompt())
    have.append(t.ask("why"))
    t.prompt()
    t.send("\x04")
    t.end(0)
    check("as if it had not been saved", have == want, have, want)
    # A disk that is full: the file stays, and the conversation isn't lost at once.
    old = open(path, "rb").read()
    t = Terminal(*BASE, "-n", "30", "--session", path, limit=8)
    t.prompt()
    t.ask("more")
    t.prompt()
    t.send("\x04")
    check("a sentence", "can't be saved" in t.prompt().replace("\r\n", " "))
    t.send("\x04")
    t.end(1)
    check("the old session", open(path, "rb").read() == old)


def manners(tmp):
    t = Terminal(*BASE, "-p", "hello", "-n", "300", "--temp", "2", env={"NO_COLOR": "1"})
    t.end(0)
    check("nothing drives the terminal", not re.search("[\0-\b\v\f\x0e-\x1f\x7f-\x9f]", t.text),
          t.text)
    check("a last line", " tokens, first in " in t.text, t.text)
    t = Terminal(*BASE, "-p", "hello", "-n", "3")
    t.end(0)
    check("a dim last line", "\x1b[2m[" in t.text and t.text.rstrip().endswith("\x1b[0m"), t.text)
    t = Terminal("--raw")
    t.end(2)
    check("raw wants a prompt", "--prompt" in t.text, t.text)
    t = Terminal()
    t.end(2)
    check("no template", "--chat-template" in t.text, t.text)
    # A signal that no key sent harms no later message; the second gives the terminal back.
    t = Terminal(*BASE, "-n", "9")
    t.prompt()
    os.kill(t.pid, signal.SIGINT)
    time.sleep(0.2)
    check("an answer", t.ask("hello") ==
          as_shown(once(*BASE, "-n", "9", "-p", "hello")["text"]))
    t.prompt()
    os.kill(t.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(t.pid, signal.SIGINT)
    t.end(130)


def main():
    tests = [conversation, interrupted, typed_ahead, messages, commands, sessions, full, manners]
    for test in tests + ([] if PLAIN else [unread]):
        with tempfile.TemporaryDirectory() as tmp:
            try:
                test(tmp)
            except SystemExit:
                print(f"    in {test.__name__}")
    print("passed" if failed == 0 else f"{failed} failed")
    sys.exit(failed != 0)


main()
