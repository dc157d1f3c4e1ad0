//! What can't be interrupted by itself: looking up a name, and connecting. A signal ends the waiting for both.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::ground::Ground;
use crate::support::{Process, arg, wait_until};

/// Send `pull` a SIGINT; it has to end with 130 and one error.
fn interrupt(pull: &mut Process, name: &str) {
    assert!(pull.child().try_wait().expect("wait").is_none(), "it ended by itself");
    let pid = rustix::process::Pid::from_child(pull.child());
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("kill");
    let mut said = String::new();
    let mut stderr = pull.child().stderr.take().expect("piped");
    std::io::Read::read_to_string(&mut stderr, &mut said).expect("read");
    assert_eq!(pull.child().wait().expect("wait").code(), Some(130), "{said}");
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("reflinkd: ")).collect();
    assert_eq!(errors, [format!("reflinkd: cannot pull {name}: interrupted")]);
}

/// A name server that hears and never answers. Whoever waits for it asks again after 15 s.
#[test]
fn a_signal_ends_a_lookup() {
    let ground = Ground::new();
    let silent = UdpSocket::bind("127.77.0.53:53").expect("bind port 53");
    silent.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let resolv = ground.config("resolv.conf", "nameserver 127.77.0.53\noptions timeout:15 attempts:3\n");
    let hosts = ground.config("nsswitch.conf", "hosts: dns\n");
    for file in [&resolv, &hosts] {
        fs::set_permissions(file, PermissionsExt::from_mode(0o644)).expect("chmod");
    }
    let name = "registry.test:5000/team/app:v1";
    let asked = ground.command(&["pull", name]);
    let script = "mount --bind \"$1\" /etc/resolv.conf; mount --bind \"$2\" /etc/nsswitch.conf; shift 2; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-ec", script, "sh", arg(&resolv), arg(&hosts)]);
    command.arg(asked.get_program()).args(asked.get_args());
    for (name, value) in asked.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut pull = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()));
    let mut query = [0; 512];
    let length = silent.recv(&mut query).expect("a query");
    let first = query[..length].to_vec();
    assert!(first.windows(14).any(|part| *part == *b"\x08registry\x04test"), "{first:?}");
    interrupt(&mut pull, name);
    // Of one lookup there are two questions, for addresses of both kinds; a third would be the first again.
    silent.set_nonblocking(true).expect("nonblocking");
    let more = std::iter::from_fn(|| silent.recv(&mut query).ok()).count();
    assert!(more <= 1, "it was waited for until {} questions were asked", more + 1);
    ground.assert_untouched("after a lookup");
}

/// Connections to `address` that the kernel waits for.
fn connecting(address: SocketAddr) -> usize {
    let end = format!(":{:04X} 02 ", address.port());
    fs::read_to_string("/proc/net/tcp").expect("read").lines().filter(|line| line.contains(&end)).count()
}

/// A server that never takes a connection: its queue is full, and the kernel drops what comes.
#[test]
fn a_signal_ends_a_connection_attempt() {
    let ground = Ground::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("an address");
    let queue: Vec<_> =
        std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()).collect();
    assert!(!queue.is_empty());
    wait_until("nobody connects any more", || connecting(address) == 0);
    // Longer than the kernel itself tries.
    let config = ground.config("patient.toml", "registry_timeout = 3600");
    let name = format!("{address}/team/app:v1");
    let mut command = ground.command(&["--config", arg(&config), "pull", &name]);
    let mut pull = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    wait_until("it connects", || connecting(address) == 1);
    let begun = Instant::now();
    interrupt(&mut pull, &name);
    // Which the kernel itself gives up after two minutes.
    assert!(begun.elapsed() < Duration::from_secs(60), "it was waited for");
    drop(queue);
    ground.assert_untouched("after a connection");
}
