//! Giving commands that must come to an end: on a full disk a filesystem may let its writers wait for ever.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Answer, reflinkd_command};

/// Longer than anything takes that isn't stuck.
const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(2);

/// The command of a verb: `reflinkd`'s, or where it begins with a front door's name a call of that.
fn command(root: &Path, args: &[&str]) -> Command {
    if !matches!(args.first(), Some(&"docker" | &"containerd")) {
        return reflinkd_command(root, args);
    }
    let own = std::env::current_exe().expect("a path");
    let program: PathBuf = own.ancestors().nth(2).expect("target/debug/deps").join("examples/reflinkd-verbs");
    assert!(program.exists(), "{} is missing: cargo build --example reflinkd-verbs", program.display());
    let mut command = Command::new(program);
    command.arg(root).args(args);
    command
}

/// Give a verb to the store at `root`, whatever it answers.
pub(crate) fn ask(root: &Path, args: &[&str]) -> Answer {
    ask_with(root, args, Stdio::null())
}

/// The same with something to read.
pub(crate) fn ask_with(root: &Path, args: &[&str], input: Stdio) -> Answer {
    let output = || tempfile::tempfile().expect("a file below /tmp");
    let (stdout, stderr) = (output(), output());
    let handle = |file: &File| Stdio::from(file.try_clone().expect("a descriptor"));
    let mut command = command(root, args);
    command.stdin(input).stdout(handle(&stdout)).stderr(handle(&stderr));
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if begun.elapsed() > DEADLINE {
            let at = std::fs::read_to_string(format!("/proc/{}/stack", child.id())).unwrap_or_default();
            let _ = child.kill();
            panic!("{args:?} hangs in the kernel at\n{at}");
        }
        std::thread::sleep(POLL);
    };
    let text = |mut file: File| {
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("reflinkd prints UTF-8");
        text
    };
    Answer { status: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Give a verb that must succeed; its output without the last line end.
pub(crate) fn ok(root: &Path, args: &[&str]) -> String {
    let answer = ask(root, args);
    assert_eq!(answer.status, Some(0), "{args:?} failed:\n{}{}", answer.stdout, answer.stderr);
    answer.stdout.trim_end().to_string()
}

/// The array that a command prints as JSON.
pub(crate) fn rows(root: &Path, args: &[&str]) -> Vec<Value> {
    let text = ok(root, &[args, &["--format", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?} printed no JSON array: {e}\n{text}"))
}
