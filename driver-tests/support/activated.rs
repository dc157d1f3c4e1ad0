//! `reflinkd serve` with sockets at which somebody else listens already, as a service manager gives them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

/// A shell that takes its standard input and output for sockets, and becomes serve. At most two of them, with their names as
/// LISTEN_FDNAMES has them; without any, nothing is said of sockets. `text` becomes the configuration file at `config`.
pub(crate) fn serve(root: &Path, config: &Path, text: &str, (names, sockets): (&str, Vec<OwnedFd>)) -> Command {
    let mut command = Command::new("sh");
    let said = match sockets.len() {
        0 => String::new(),
        count => format!("export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names};"),
    };
    let script = format!("exec 3<&0 4<&1 </dev/null >/dev/null; {said} exec \"$@\"");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_reflinkd"), "--no-tend", "--root"]).arg(root).arg("serve");
    fs::write(config, text).expect("write");
    command.env("REFLINKD_CONFIG", config);
    // In the files' places there would be others.
    assert!(sockets.len() <= 2);
    let mut sockets = sockets.into_iter();
    command.stdin(sockets.next().map_or_else(Stdio::null, Stdio::from));
    command.stdout(sockets.next().map_or_else(Stdio::null, Stdio::from));
    command
}
